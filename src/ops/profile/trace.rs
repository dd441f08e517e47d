//! A profile in the Trace Event Format that `chrome://tracing` and Perfetto open.

use super::{Label, Profile};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Writes `{"traceEvents": […], "displayTimeUnit": "ms", …}` with `more` beside it, one span a line; times in µs.
pub fn write(profile: &Profile, more: &[(&str, Value)], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{{\"displayTimeUnit\": \"ms\",")?;
    for (key, value) in more {
        writeln!(out, "{}: {value},", Value::from(*key))?;
    }
    writeln!(out, "\"spans_left_out\": {},", profile.events_left_out)?;
    write!(
        out,
        "\"traceEvents\": [\n{}",
        json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "fttrain"}})
    )?;
    for event in &profile.events {
        let (name, kind) = match event.label {
            Label::Op(site, _) => (site.name().to_owned(), "op"),
            Label::Block(pass, index) => (format!("block {index} {}", pass.name()), "block"),
            Label::Stretch(name) => (name.to_owned(), "stretch"),
        };
        let (start_us, us) = (event.start_ns as f64 / 1e3, event.duration_ns as f64 / 1e3);
        let span =
            json!({"name": name, "cat": kind, "ph": "X", "ts": start_us, "dur": us, "pid": 1, "tid": 1});
        write!(out, ",\n{span}")?;
    }
    writeln!(out, "\n]}}")
}

#[cfg(test)]
mod tests {
    use super::super::{Pass, Site, block, finish, op, start, step};
    use super::*;

    #[test]
    fn a_trace_is_json_whose_spans_lie_inside_each_other() {
        start(&candle_core::Device::Cpu);
        {
            let _step = step();
            let _block = block(Pass::Forward, 7);
            drop(op(Site::Qkv));
        }
        let mut text = Vec::new();
        write(&finish().unwrap(), &[("table", json!([1]))], &mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(trace["table"], json!([1]));
        let spans: Vec<(&str, f64, f64)> = trace["traceEvents"].as_array().unwrap()[1..]
            .iter()
            .map(|e| (e["name"].as_str().unwrap(), e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap()))
            .collect();
        let names: Vec<_> = spans.iter().map(|s| s.0).collect();
        assert_eq!(names, ["q k v", "block 7 forward", "step"]);
        for pair in spans.windows(2) {
            let [(_, inner, inner_us), (_, outer, outer_us)] = pair else { unreachable!() };
            assert!(outer <= inner && inner + inner_us <= outer + outer_us + 1e-3, "{pair:?}");
        }
    }
}
