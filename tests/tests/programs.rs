//! How large the programs are: instructions as compiled, and on the kernel that they were counted on, instructions that the verifier
//! walked through and bytes after its and the compiler's work.
//!
//! `tests/data/programs.txt` says how large they were when somebody looked; what grew by more than a twentieth fails.
//! `UPDATE_EXPECT=1` writes what is found. What the kernel makes of a program differs between its versions: those columns are
//! compared on the same one only, and the compiled size everywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lb_common::layout::Forwarding;
use lb_tests::datapath::path::Paths;
use lb_tests::datapath::{Datapath, Program};

/// Columns of the file.
const COLUMNS: [&str; 4] = ["compiled", "verified", "translated", "jited"];

/// Sizes of a program, in the order of [`COLUMNS`].
type Sizes = [u32; 4];

/// What the file says.
struct Written {
    /// Version of the kernel that made the last three columns.
    kernel: String,
    programs: BTreeMap<String, Sizes>,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/programs.txt")
}

/// First two numbers of the kernel's version: patches change little.
fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().split('.').take(2).collect::<Vec<_>>().join("."))
}

fn measure() -> Result<BTreeMap<String, Sizes>> {
    let mut found = BTreeMap::new();
    for forwarding in [Forwarding::Stack, Forwarding::Redirect] {
        let paths = Paths::read(forwarding)?;
        let datapath = Datapath::load(forwarding)?;
        for program in Program::ALL.into_iter().chain([Program::FromWire]) {
            let info = match program {
                Program::FromWire => datapath.wire()?.info()?,
                _ => datapath.program(program)?.info()?,
            };
            let verified =
                info.verified_instruction_count().context("Linux 5.16 tells verified instructions")?;
            let translated = info.size_translated().context("the translated size is for root only")?;
            let sizes = [paths.compiled(program)?, verified, translated, info.size_jitted()];
            found.insert(format!("{forwarding:?} {}", program.name()).to_lowercase(), sizes);
        }
    }
    Ok(found)
}

impl Written {
    fn parse(text: &str) -> Result<Self> {
        let mut written = Self { kernel: String::new(), programs: BTreeMap::new() };
        for line in text.lines() {
            if let Some(kernel) = line.strip_prefix("# Linux ") {
                written.kernel = kernel.to_owned();
            } else if !line.starts_with('#') {
                let (name, sizes) =
                    line.split_at_checked(24).with_context(|| format!("not a program: {line}"))?;
                let sizes = sizes.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
                let sizes = sizes.try_into().ok().with_context(|| format!("not four sizes: {line}"))?;
                written.programs.insert(name.trim().to_owned(), sizes);
            }
        }
        Ok(written)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Sizes of the programs (tests/tests/programs.rs): instructions compiled, walked through by the verifier; bytes.\n\
             # Linux {}\n# {:22} {}\n",
            self.kernel,
            "program",
            COLUMNS.map(|name| format!("{name:>10}")).join(" ")
        );
        for (name, sizes) in &self.programs {
            text += &format!("{name:24} {}\n", sizes.map(|size| format!("{size:>10}")).join(" "));
        }
        text
    }

    /// What of `found` is larger than this allows, in words.
    fn grown(&self, found: &Self) -> Vec<String> {
        let columns = if self.kernel == found.kernel { COLUMNS.len() } else { 1 };
        let mut grown = Vec::new();
        for (name, sizes) in &found.programs {
            let Some(before) = self.programs.get(name) else {
                grown.push(format!("{name} is new"));
                continue;
            };
            for column in 0..columns {
                let (old, new) = (before[column], sizes[column]);
                if new > old + old.div_ceil(20) {
                    grown.push(format!("{name}: {} {new}, was {old}", COLUMNS[column]));
                }
            }
        }
        let gone = self.programs.keys().filter(|name| !found.programs.contains_key(*name));
        grown.extend(gone.map(|name| format!("{name} is gone")));
        grown
    }
}

#[test]
fn the_programs_got_no_larger() {
    let found = Written { kernel: kernel().expect("a version"), programs: measure().expect("sizes") };
    println!("{}", found.text());
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(file(), found.text()).expect("the file can be written");
        return;
    }
    let text = fs::read_to_string(file()).expect("data/programs.txt");
    let grown = Written::parse(&text).expect("sizes").grown(&found);
    assert!(grown.is_empty(), "UPDATE_EXPECT=1 accepts, with a reason in the commit:\n{}", grown.join("\n"));
}

#[test]
fn what_grew_is_told() {
    let written = |kernel: &str, sizes: Sizes| Written {
        kernel: kernel.to_owned(),
        programs: [("stack from_pod".to_owned(), sizes)].into(),
    };
    let before = Written::parse(&written("6.18", [1000, 2000, 3000, 4000]).text()).expect("what was written");
    assert!(before.grown(&written("6.18", [1050, 2100, 3150, 4200])).is_empty());
    let grown = before.grown(&written("6.18", [1051, 2101, 3000, 4000]));
    assert_eq!(grown, ["stack from_pod: compiled 1051, was 1000", "stack from_pod: verified 2101, was 2000"]);
    // Another kernel's verifier goes other ways.
    assert_eq!(before.grown(&written("6.12", [1051, 9000, 9000, 9000])).len(), 1);
    let other = Written { kernel: "6.18".to_owned(), programs: [("x".to_owned(), [1; 4])].into() };
    assert_eq!(before.grown(&other), ["x is new", "stack from_pod is gone"]);
}
