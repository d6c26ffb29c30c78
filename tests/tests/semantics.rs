//! `docs/semantics.md` against the sources: every rule is there, and is proven by tests that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The rules there are. A rule that leaves the page has to leave this list, too.
const RULES: &str = "\
    S-01 S-02 S-03 S-04 S-05 S-06 S-10 S-11 S-12 S-13 S-14 S-20 S-21 S-22 S-23 S-24 S-30 S-31 S-32 S-33 S-34 S-35 S-36 S-37 \
    S-40 S-41 S-42 S-43 S-50 S-51 S-52 S-53 S-54 S-55 S-60 S-61 S-62 S-63 S-64 S-65 S-70 S-71 S-72 S-73 S-74 S-80 S-81 S-82 \
    S-83 S-84 S-85";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace around this package")
}

/// One section of the page.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rule {
    /// What happens, without the lines about tests.
    text: String,
    /// After `Proof:`.
    proof: Vec<String>,
    /// After `Not yet:`.
    not_yet: Option<String>,
    /// After `Shown by:`.
    shown_by: Vec<String>,
}

/// The sections of the page by rule.
fn rules(page: &str) -> BTreeMap<String, Rule> {
    let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
    for section in page.split("\n### ").skip(1) {
        // The next chapter's heading is none of the section's.
        let section = section.split("\n## ").next().unwrap_or_default();
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let id = heading.split_whitespace().next().unwrap_or_default().to_owned();
        let mut rule = Rule::default();
        for paragraph in body.split("\n\n").map(str::trim).filter(|it| !it.is_empty()) {
            if let Some(names) = paragraph.strip_prefix("Proof:") {
                rule.proof = tests(names);
            } else if let Some(names) = paragraph.strip_prefix("Shown by:") {
                rule.shown_by = tests(names);
            } else if let Some(reason) = paragraph.strip_prefix("Not yet:") {
                rule.not_yet = Some(reason.trim().to_owned());
            } else {
                rule.text.push_str(paragraph);
            }
        }
        assert!(rules.insert(id.clone(), rule).is_none(), "{id} has two sections");
    }
    rules
}

/// The names in a list of tests, with their quotation marks or without their backticks.
fn tests(list: &str) -> Vec<String> {
    let list = list.replace('\n', " ");
    let mut names = Vec::new();
    let mut rest = list.as_str();
    while let Some(begin) = rest.find(['"', '`']) {
        let mark = &rest[begin..=begin];
        let after = &rest[begin + 1..];
        let end = after.find(mark).unwrap_or_else(|| panic!("a name without end in {list:?}"));
        names.push(if mark == "\"" { format!("\"{}\"", &after[..end]) } else { after[..end].to_owned() });
        rest = &after[end + 1..];
    }
    names
}

/// Every file of ours with one of these endings.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        ["lb-agent", "lb-common", "lb-ebpf", "tests", "xtask"].iter().map(|it| root().join(it)).collect();
    while let Some(directory) = open.pop() {
        for entry in
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| endings.contains(&it.to_str().unwrap_or_default())) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What there is to prove something with.
struct Sources {
    /// Names of test functions.
    functions: BTreeSet<String>,
    /// Names of scenario files.
    scenarios: BTreeSet<String>,
    /// The text of the conformance suite.
    titles: String,
    /// The rules that comments name, and where.
    named: BTreeMap<String, PathBuf>,
}

fn sources() -> Sources {
    let mut sources = Sources {
        functions: BTreeSet::new(),
        scenarios: BTreeSet::new(),
        titles: String::new(),
        named: BTreeMap::new(),
    };
    for path in files(&["rs", "txt"]) {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // This file names rules that are none.
        for id in ids(&text).into_iter().filter(|_| !path.ends_with(file!())) {
            sources.named.entry(id).or_insert_with(|| path.clone());
        }
        let inside = path.strip_prefix(root()).unwrap();
        if inside.extension().is_some_and(|it| it == "txt") {
            if inside.parent().is_some_and(|it| it.ends_with("scenarios")) {
                sources.scenarios.insert(inside.file_name().unwrap().to_string_lossy().into_owned());
            }
            continue;
        }
        if inside.starts_with("tests/tests/conformance") {
            sources.titles.push_str(&text);
        }
        sources.functions.extend(test_functions(&text));
    }
    sources
}

/// The names of the functions below a `#[test]` or `#[tokio::test]`.
fn test_functions(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if is_test && !line.starts_with("#[") && !line.starts_with("//") {
            let name = line.split_once("fn ").map(|(_, it)| it.split(['(', '<']).next().unwrap_or_default());
            names.extend(name.map(str::to_owned));
            is_test = false;
        }
    }
    names
}

/// The `S-nn` in a text.
fn ids(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("S-").map(|(at, _)| &text[at..]);
    let id = |it: &str| {
        let digits = it.get(2..4)?;
        let more = it.as_bytes().get(4).is_some_and(u8::is_ascii_alphanumeric);
        (digits.bytes().all(|it| it.is_ascii_digit()) && !more).then(|| format!("S-{digits}"))
    };
    starts.filter_map(id).collect()
}

impl Sources {
    fn has(&self, test: &str) -> bool {
        if test.starts_with('"') {
            // As a literal of its own.
            self.titles.contains(test)
        } else if test.ends_with(".txt") {
            self.scenarios.contains(test)
        } else {
            self.functions.contains(test)
        }
    }
}

/// What is wrong with the page.
fn complaints(rules: &BTreeMap<String, Rule>, sources: &Sources) -> Vec<String> {
    let mut wrong = Vec::new();
    let wanted: BTreeSet<&str> = RULES.split_whitespace().collect();
    wrong.extend(
        wanted.iter().filter(|id| !rules.contains_key(**id)).map(|id| format!("{id} has no section")),
    );
    wrong.extend(
        rules.keys().filter(|id| !wanted.contains(id.as_str())).map(|id| format!("{id} is no known rule")),
    );
    for (id, path) in &sources.named {
        if !rules.contains_key(id) {
            wrong.push(format!("{id} is named in {} and has no section", path.display()));
        }
    }
    for (id, rule) in rules {
        match &rule.not_yet {
            None if rule.proof.is_empty() => {
                wrong.push(format!("{id} has no proof, and no `Not yet:` either"));
            }
            Some(reason)
                if reason.split_whitespace().count() < 5 || !reason.to_lowercase().contains("today") =>
            {
                wrong.push(format!("{id}: `Not yet:` says why, and what happens today"));
            }
            _ => {}
        }
        if rule.text.is_empty() && rule.not_yet.is_none() {
            wrong.push(format!("{id} says nothing"));
        }
        for test in rule.proof.iter().chain(&rule.shown_by) {
            if !sources.has(test) {
                wrong.push(format!("{id} names {test}, which is no test"));
            }
        }
    }
    wrong
}

#[test]
fn every_rule_is_proven() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let wrong = complaints(&rules(&page), &sources());
    assert!(wrong.is_empty(), "docs/semantics.md:\n{}", wrong.join("\n"));
}

/// The test above would notice.
#[test]
fn what_is_missing_is_noticed() {
    let page = "# A page\n\n### S-01 One\nIt happens.\n\nProof: `every_rule_is_proven`, `no_such_test`, \"no such title\"\n\n\
                ### S-02 Two\nNot yet: later.\n\n## A chapter\n\n### S-03 Three\nIt happens, too.\n\n### S-99 Four\nMore.\n\n\
                Proof: `no-such.txt`\n";
    let rules = rules(page);
    assert_eq!(rules["S-01"].proof, ["every_rule_is_proven", "no_such_test", "\"no such title\""]);
    let mut sources = sources();
    sources.titles = String::new();
    sources.named = [("S-98".to_owned(), PathBuf::from("here.rs"))].into();
    let wrong = complaints(&rules, &sources).join("\n");
    for complaint in [
        "S-04 has no section",
        "S-99 is no known rule",
        "S-98 is named in here.rs",
        "S-01 names no_such_test",
        "S-01 names \"no such title\"",
        "S-02: `Not yet:`",
        "S-03 has no proof",
        "S-99 names no-such.txt",
    ] {
        assert!(wrong.contains(complaint), "{complaint}: not among\n{wrong}");
    }
    assert!(!wrong.contains("every_rule_is_proven,"), "{wrong}");
}

#[test]
fn names_and_rules_are_found_in_sources() {
    let text = "#[tokio::test(flavor = \"x\")]\n#[ignore]\n// Why.\nasync fn one() {}\n#[test]\nfn two<T>() {}\nfn three() {}\n\
                // S-12, S-34 and S-345 but UTF-8\n";
    assert_eq!(test_functions(text), ["one", "two"]);
    assert_eq!(ids(text), ["S-12", "S-34"].map(str::to_owned).into());
}
