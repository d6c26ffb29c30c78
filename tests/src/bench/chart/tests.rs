//! Charts of made-up reports.

use super::*;

fn chart() -> Chart {
    let text = r#"
name: rates
benchmark: latency
title: Requests <a second>
subtitle: to no load balancer
figure: ratio
line: { at: 1, label: no load balancer }
series:
  - { label: redirect, colour: ours, case: "{} redirect" }
  - { label: iptables, colour: iptables, case: "{} iptables" }
groups:
  - { label: TCP, key: tcp }
  - { label: UDP, key: udp }
"#;
    serde_saphyr::from_str(text).unwrap()
}

fn report(cases: &[(&str, f64)]) -> Report {
    let rows = cases.iter().map(|(case, ratio)| {
        Row::new(*case, "/s", &[1.0]).ratios("direct", &[ratio * 0.9, *ratio, ratio * 1.1])
    });
    Report::new("latency", 3, rows.collect())
}

/// Widths of the bars of a colour.
fn widths(svg: &str, colour: &str) -> Vec<f64> {
    let bars = svg.lines().filter(|line| line.contains(colour) && line.contains("height=\"14.0\""));
    let width = |line: &str| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok();
    bars.map(|line| width(line).expect("a width")).collect()
}

#[test]
fn bars_are_as_long_as_their_figures() {
    let report = report(&[("tcp redirect", 1.2), ("tcp iptables", 0.6), ("udp redirect", 0.3)]);
    let svg = chart().draw(&report, Theme::Light).unwrap();
    let (ours, iptables) = (widths(&svg, "#0072b2"), widths(&svg, "#d55e00"));
    assert_eq!((ours.len(), iptables.len()), (2, 1), "{svg}");
    assert!((ours[0] / iptables[0] - 2.0).abs() < 0.01 && (ours[0] / ours[1] - 4.0).abs() < 0.01);
    assert!(svg.contains("1.20×") && svg.contains("Requests &lt;a second&gt;"));
    assert_eq!(chart().missing(&report), ["udp iptables"]);
}

#[test]
fn a_group_without_figures_is_left_out_and_a_chart_without_any_is_none() {
    let svg = chart().draw(&report(&[("tcp redirect", 1.2)]), Theme::Dark).unwrap();
    assert!(svg.contains(">TCP<") && !svg.contains(">UDP<") && !svg.contains(">iptables<"), "{svg}");
    assert!(chart().draw(&report(&[("another", 1.0)]), Theme::Dark).is_none());
}

#[test]
fn light_and_dark_differ_in_colours_only() {
    let report = report(&[("tcp redirect", 1.2), ("tcp iptables", 0.6)]);
    let [light, dark] = Theme::ALL.map(|theme| chart().draw(&report, theme).unwrap());
    let plain = |svg: &str| {
        svg.split('#')
            .map(|part| part.trim_start_matches(|c: char| c.is_ascii_hexdigit()))
            .collect::<String>()
    };
    assert_ne!(light, dark);
    assert_eq!(plain(&light), plain(&dark));
}

#[test]
fn drawings_are_well_formed() {
    let points = [
        Point { label: "D1 <x>".into(), distance: 0.5, holds: true, text: "12 ns".into() },
        Point { label: "D2".into(), distance: f64::INFINITY, holds: false, text: "3 flows".into() },
        Point { label: "D3".into(), distance: 0.0, holds: true, text: "0 flows".into() },
    ];
    let bars = chart().draw(&report(&[("tcp redirect", 1.2)]), Theme::Light).unwrap();
    for svg in [bars, overview(&points, "a & b", Theme::Dark)] {
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // Every element ends itself, or ends on its own line.
        let body: Vec<_> = svg.lines().collect();
        assert!(body[0].starts_with("<svg ") && body[body.len() - 1] == "</svg>");
        for line in &body[1..body.len() - 1] {
            let name = line[1..].split([' ', '>']).next().unwrap();
            let ended = line.ends_with("/>") || line.ends_with(&format!("</{name}>"));
            assert!(line.starts_with('<') && ended && !line.contains("& "), "{line}");
        }
    }
}
