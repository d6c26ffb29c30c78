//! Fair shares of a connection table: who may make it fuller when it is nearly full.
//!
//! A full table makes room by evicting whatever was looked up least recently, whoever's that is, and a flow that the flow
//! cache answers for is looked up every few seconds only: a flood of new flows would evict the live ones of every Service.
//! So a Service that has much of a table that is nearly full begins a new flow in the place of one of its own.

/// Rings of recent flows that a table has; a Service has the one of its index, see [`ring_of`].
pub const RINGS: u32 = 16;
/// Places of a ring that are looked at for a flow to end.
pub const TRIES: u32 = 8;
/// Seconds without a count by the agent after which nobody knows the shares any more, and nothing is held back.
pub const STALE: u32 = 60;

/// What a new flow of a Service may do to the connection table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Make it fuller.
    Free,
    /// Take the place of a recent flow of its own Service that may end; make it fuller when there is none.
    Recycle,
    /// Take the place of such a flow, or not begin.
    Bound,
}

/// What a Service with `own` of the `total` entries in a table of `size` may do. `services` is the number of Services that
/// have entries.
///
/// Up to three quarters, everybody is free. Above, who has more than an eighth recycles; above seven eighths, everybody. Who
/// has more than an eighth and more than equal parts would give them is bound. A Service alone is never bound: it can
/// evict nobody's flows but its own.
#[inline(always)]
pub const fn growth(size: u32, total: i64, own: i64, services: u32) -> Growth {
    let size = size as i64;
    if total * 4 <= size * 3 || size == 0 {
        return Growth::Free;
    }
    let much = own * 8 > size;
    if !much && total * 8 <= size * 7 {
        return Growth::Free;
    }
    // No Service has entries before the agent counted the first: as many as there is one of.
    let services = if services == 0 { 1 } else { services as i64 };
    if much && own * services > size && services > 1 { Growth::Bound } else { Growth::Recycle }
}

/// The ring of a Service.
#[inline(always)]
pub const fn ring_of(service: u32) -> u32 {
    service % RINGS
}

/// Places in each ring for a table of so many entries: all rings together have one for four entries. A power of two.
///
/// A flow is in no danger before so many newer ones of its Service have begun: what its ends need for a handshake.
pub const fn ring_length(connections: u32) -> u32 {
    let places = connections / 4 / RINGS;
    if places < 16 {
        16
    } else if places > 8192 {
        8192
    } else {
        places.next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 32_768;

    #[test]
    fn nobody_is_held_back_while_there_is_room() {
        assert_eq!(growth(SIZE, 24_576, 24_576, 5), Growth::Free);
        assert_eq!(growth(SIZE, 24_577, 4_096, 5), Growth::Free);
        assert_eq!(growth(SIZE, 28_672, 4_096, 5), Growth::Free);
    }

    #[test]
    fn who_has_much_recycles_first_and_everybody_in_the_end() {
        assert_eq!(growth(SIZE, 24_577, 4_097, 5), Growth::Recycle);
        assert_eq!(growth(SIZE, 28_673, 1, 5), Growth::Recycle);
    }

    #[test]
    fn who_has_more_than_equal_parts_and_than_an_eighth_is_bound() {
        assert_eq!(growth(SIZE, 24_577, SIZE as i64 / 2, 2), Growth::Recycle);
        assert_eq!(growth(SIZE, 24_577, SIZE as i64 / 2 + 1, 2), Growth::Bound);
        assert_eq!(growth(SIZE, 24_577, 4_097, 1_000), Growth::Bound);
        assert_eq!(growth(SIZE, 28_673, 4_096, 1_000), Growth::Recycle);
    }

    #[test]
    fn a_service_alone_has_all_of_it() {
        for services in [0, 1] {
            assert_eq!(growth(SIZE, 40_000, 40_000, services), Growth::Recycle);
        }
    }

    #[test]
    fn counts_that_ran_below_zero_hold_nobody_back() {
        assert_eq!(growth(SIZE, -5, -5, 3), Growth::Free);
        assert_eq!(growth(SIZE, i64::from(SIZE), -5, 3), Growth::Recycle);
        assert_eq!(growth(0, 5, 5, 1), Growth::Free);
    }

    #[test]
    fn rings_are_as_long_as_the_table_is_large() {
        let lengths = [(1024, 16), (32_768, 512), (262_144, 4096), (300_000, 8192), (1 << 22, 8192)];
        for (connections, length) in lengths {
            assert_eq!(ring_length(connections), length);
        }
    }

    proptest! {
        /// Bound Services are few, and those that are not have room: what others may add never needs what is theirs.
        #[test]
        fn fewer_than_eight_services_are_ever_bound(parts in proptest::collection::vec(0_i64..8_000, 1..64)) {
            let total = parts.iter().sum::<i64>().min(SIZE.into());
            let services = parts.len() as u32;
            let bound = parts.iter().filter(|own| growth(SIZE, total, **own, services) == Growth::Bound);
            prop_assert!(parts.iter().sum::<i64>() > SIZE.into() || bound.count() < 8);
        }
    }
}
