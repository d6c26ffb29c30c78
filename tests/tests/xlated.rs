//! The path of an established flow, as the kernel runs it: no helper call but the redirect, no map look-up.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::programs::SchedClassifier;
use lb_common::layout::Forwarding;
use lb_tests::datapath::{Datapath, Program};

/// Helpers that the main function may call. `bpf_skb_change_type` is for pods behind a bridge alone.
const HELPERS: [&str; 4] = ["bpf_redirect", "bpf_redirect_peer", "bpf_redirect_neigh", "bpf_skb_change_type"];
/// Keeps the sum that a network device made of an IPv4 packet right: a few instructions, where packets come in from there.
const DEVICE_SUM: &str = "bpf_csum_update";
/// The slow steps: what no packet of an established flow takes, unless the flow cache has no answer for it.
const STEPS: [&str; 24] = [
    "pull_headers",
    "examine4",
    "examine6",
    "release_fragments",
    "hold4",
    "hold6",
    "error4",
    "error6",
    "echo4",
    "echo6",
    "carry4",
    "carry6",
    "begin4",
    "begin6",
    "make_room4",
    "make_room6",
    "masquerade4",
    "masquerade6",
    "enter4",
    "enter6",
    "refuse4",
    "refuse6",
    "tell4",
    "tell6",
];
/// The kernel puts a prologue in front of programs that write to packets: it makes the packet's headers its own
/// when they are shared with somebody else, which takes this helper. Its call is one of the first instructions.
const PROLOGUE: (&str, usize) = ("bpf_skb_pull_data", 10);

/// One BPF function as the kernel runs it.
struct Function {
    name: String,
    instructions: Vec<String>,
}

impl Function {
    /// What it calls: the position of the call and the name of what is called.
    fn calls(&self) -> Vec<(usize, &str)> {
        let call = |(at, text): (usize, &'_ String)| -> Option<(usize, usize)> {
            text.contains(" call ").then(|| (at, text.find('#').map_or(text.len(), |found| found + 1)))
        };
        let mut calls = Vec::new();
        for (at, start) in self.instructions.iter().enumerate().filter_map(call) {
            let text = &self.instructions[at];
            // Helpers read `call name#number`, functions of the program `call pc+distance#bpf_prog_tag_name`.
            let name = match text[start..].strip_prefix("bpf_prog_") {
                Some(function) => function.split_once('_').map_or(function, |(_tag, name)| name),
                None => {
                    text.split_once(" call ").map_or("", |(_, call)| call.split('#').next().unwrap_or(""))
                }
            };
            calls.push((at, name));
        }
        calls
    }
}

/// The functions of a loaded program, the main function first.
fn functions(id: u32) -> Result<Vec<Function>> {
    let id = id.to_string();
    let output = Command::new("bpftool")
        .args(["--json", "prog", "dump", "xlated", "id", &id])
        .output()
        .context("bpftool: `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stdout));
    let instructions: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
    let mut functions: Vec<Function> = Vec::new();
    for instruction in &instructions {
        if let Some(prototype) = instruction["proto"].as_str() {
            let name = prototype.split('(').next().and_then(|start| start.split_whitespace().last());
            functions.push(Function { name: name.unwrap_or(prototype).to_owned(), instructions: Vec::new() });
        }
        let text = instruction["disasm"].as_str().context("an instruction without text")?;
        functions
            .last_mut()
            .context("an instruction outside any function")?
            .instructions
            .push(text.to_owned());
    }
    Ok(functions)
}

/// True when the kernel writes the CPU's number into the program instead of calling for it.
fn inlines_the_cpu() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers =
        release.split(|sign: char| !sign.is_ascii_digit()).map_while(|number| number.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(version >= (6, 10))
}

fn check(program: Program, main: &Function) -> Result<()> {
    let inlines = inlines_the_cpu()?;
    ensure!(main.name == program.name(), "the main function is {}", main.name);
    let calls = main.calls();
    for (at, name) in &calls {
        let step = STEPS.contains(name);
        let prologue = *name == PROLOGUE.0 && *at < PROLOGUE.1;
        let cpu = *name == "bpf_get_smp_processor_id" && !inlines;
        let sum = *name == DEVICE_SUM && program == Program::FromNet;
        ensure!(HELPERS.contains(name) || step || prologue || cpu || sum, "instruction {at} calls {name}");
    }
    // The steps are there, or the test looked at something else.
    ensure!(["carry4", "carry6"].iter().all(|step| calls.iter().any(|(_, name)| name == step)), "{calls:?}");
    let some = |start: &str| calls.iter().any(|(_, name)| name.starts_with(start));
    let comes_in = matches!(program, Program::FromPod | Program::FromNet);
    ensure!(
        some("begin") == comes_in && some("refuse") == comes_in && some("masquerade") != comes_in,
        "a flow begins where packets come in, and is masqueraded where they leave: {calls:?}"
    );
    let sums = calls.iter().filter(|(_, name)| *name == DEVICE_SUM).count();
    ensure!(sums == usize::from(program == Program::FromNet), "{sums} updates of a device's sum");
    Ok(())
}

#[test]
fn an_established_flow_takes_no_helper_but_the_redirect() {
    for forwarding in [Forwarding::Stack, Forwarding::Redirect] {
        let mut datapath = Datapath::load(forwarding).expect("the programs load");
        for program in Program::ALL {
            let loaded: &mut SchedClassifier = datapath
                .ebpf()
                .program_mut(program.name())
                .expect("the program")
                .try_into()
                .expect("a classifier");
            let info = loaded.info().expect("what the kernel knows of it");
            println!(
                "{forwarding:?} {}: {} instructions verified, {} bytes translated, {} bytes of machine code",
                program.name(),
                info.verified_instruction_count().unwrap_or(0),
                info.size_translated().unwrap_or(0),
                info.size_jitted()
            );
            let functions = functions(info.id()).expect("a dump");
            for function in &functions {
                println!("    {}: {} instructions", function.name, function.instructions.len());
            }
            let main = functions.first().expect("a main function");
            check(program, main).unwrap_or_else(|error| panic!("{forwarding:?} {}: {error}", program.name()));
        }
    }
}

#[test]
fn a_packet_that_xdp_carries_takes_no_helper_but_the_redirect() {
    for forwarding in [Forwarding::Stack, Forwarding::Redirect] {
        let datapath = Datapath::load(forwarding).expect("the programs load");
        let info =
            datapath.wire().and_then(|program| Ok(program.info()?)).expect("what the kernel knows of it");
        println!(
            "{forwarding:?} from_wire: {} instructions verified, {} bytes translated, {} bytes of machine code",
            info.verified_instruction_count().unwrap_or(0),
            info.size_translated().unwrap_or(0),
            info.size_jitted()
        );
        let functions = functions(info.id()).expect("a dump");
        let main = functions.first().expect("a main function");
        assert_eq!(main.name, Program::FromWire.name());
        let inlines = inlines_the_cpu().expect("a kernel version");
        let calls = main.calls();
        for (at, name) in &calls {
            // The kernel calls the map's own function.
            let redirect = name.contains("redirect_map") || name.contains("dev_hash_map_redirect");
            let step = ["learn4", "learn6"].contains(name);
            let cpu = *name == "bpf_get_smp_processor_id" && !inlines;
            assert!(redirect || step || cpu, "{forwarding:?}: instruction {at} calls {name}");
        }
        let slow =
            |name: &str| functions.iter().find(|function| function.name == name).expect("the function");
        for (step, look_up) in [("learn4", "map_lookup"), ("learn6", "fib_lookup")] {
            assert!(calls.iter().any(|(_, name)| *name == step), "{calls:?}");
            assert!(
                slow(step).calls().iter().any(|(_, call)| call.contains(look_up)),
                "{step} looks nothing up"
            );
        }
    }
}

#[test]
fn the_look_ups_are_in_the_slow_steps() {
    let mut datapath = Datapath::load(Forwarding::Stack).expect("the programs load");
    let loaded: &mut SchedClassifier =
        datapath.ebpf().program_mut("from_pod").expect("the program").try_into().expect("a classifier");
    let functions = functions(loaded.info().expect("information").id()).expect("a dump");
    let looks_up = |name: &str| {
        let function = functions.iter().find(|function| function.name == name).expect("the function");
        function.calls().iter().any(|(_, call)| call.contains("map_lookup"))
    };
    assert!(!looks_up("from_pod"));
    assert!(looks_up("carry4") && looks_up("carry6"), "the test cannot tell a look-up when it sees one");
}
