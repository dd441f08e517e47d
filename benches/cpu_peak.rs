//! What this machine reaches at best, as one JSON object: `cargo bench --bench cpu_peak`.

#![allow(missing_docs, reason = "a bench has no readers of documentation")]

mod support;

fn main() {
    let (f32, bf16) = support::register_loops();
    let peaks = serde_json::json!({
        "f32_flops_per_s": f32, "bf16_flops_per_s": bf16, "copy_bytes_per_s": support::copy(),
        "threads": rayon::current_num_threads(),
    });
    println!("{peaks}");
}
