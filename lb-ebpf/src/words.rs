//! Copies in words of 32 bits: between two maps the compiler would call `memmove`, a loop over bytes.

/// Copies a value whose size and alignment are multiples of four bytes.
///
/// # Safety
/// Both pointers are valid, and do not overlap.
#[inline(always)]
pub unsafe fn copy<T>(to: *mut T, from: *const T) {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>().is_multiple_of(4)) };
    for word in 0..size_of::<T>() / 4 {
        // SAFETY: the caller vouches for the pointers. Volatile, or the words become a call again.
        unsafe { to.cast::<u32>().add(word).write_volatile(from.cast::<u32>().add(word).read_volatile()) };
    }
}
