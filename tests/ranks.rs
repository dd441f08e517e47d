//! Several processes that share a run take the steps of one whose step is as large.

#[path = "support/run.rs"]
mod run;

#[cfg(not(any(feature = "mpi", feature = "faults", feature = "cuda")))]
#[test]
fn several_processes_are_refused_by_a_build_that_cannot_bring_them_together() {
    let (place, config) = (run::Place::unknown(), run::golden("llama/lora/run.toml"));
    for ([size, rank], lacks, way) in [
        (["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"], "no MPI", "--features mpi"),
        (["WORLD_SIZE", "RANK"], "no CUDA", "--features cuda"),
    ] {
        let mut command = place.command(&["--lora", &config]);
        command.envs([(size, "2"), (rank, "1")]);
        let ended = run::Running::start(command).end().expect(2);
        ended.says(&[size, "2 processes", lacks, way]);
    }
    // What a whole job may use says nothing of this process.
    let ended = place.run_with(&["--lora", "nowhere.toml"], "SLURM_NTASKS", "2").expect(2);
    assert!(!ended.stderr.contains("MPI"), "{}", ended.stderr);
}

#[cfg(any(feature = "mpi", feature = "faults"))]
mod shared {
    use super::run::{Config, Place, lines};
    use std::path::{Path, PathBuf};

    fn numbers(path: &Path, key: &str) -> Vec<f64> {
        lines(path).iter().map(|line| line[key].as_f64().unwrap()).collect()
    }

    /// Losses, gradient norms and evaluations are those of one process, but for the order of sums.
    pub(super) fn assert_close(one: &Path, several: &Path, what: &str) {
        for (file, key) in [
            ("metrics.jsonl", "loss"),
            ("metrics.jsonl", "grad_norm"),
            ("metrics.jsonl", "tokens"),
            ("metrics.jsonl", "learning_rate"),
            ("eval.jsonl", "loss"),
        ] {
            let [one, several] = [one, several].map(|out| numbers(&out.join(file), key));
            assert_eq!(one.len(), several.len(), "{what}: {file}");
            for (step, (a, b)) in one.iter().zip(&several).enumerate() {
                assert!((a - b).abs() <= 1e-4 * a.abs(), "{what}: {key} of line {step}: {a} and {b}");
            }
        }
    }

    /// Eighteen rows in micro-batches of two: the last step of an epoch leaves processes without any.
    pub(super) fn config(
        place: &Place,
        processes: usize,
        each: usize,
        edit: impl Fn(Config) -> Config,
    ) -> (String, PathBuf) {
        let config = Config::lora()
            .with("eval_steps", "4")
            .with("val_set_size", "4")
            .with("gradient_accumulation_steps", &each.to_string());
        edit(config).write(place, &format!("{processes}x{each}"))
    }
}

#[cfg(feature = "mpi")]
mod together {
    use super::run::{self, Config, Ended, Place, Running, assert_same, json};
    use super::shared::{assert_close, config};
    use nix::sys::signal::Signal;
    use std::process::{Command, Stdio};

    /// The program under `mpirun`, once for each of these command lines.
    fn mpirun(place: &Place, each: &[&[&str]]) -> Command {
        let mut command = Command::new("mpirun");
        for (i, arguments) in each.iter().enumerate() {
            let program = place.command(arguments);
            command.args((i > 0).then_some(":")).args(["-np", "1"]);
            command.arg(program.get_program()).args(program.get_args());
            for (name, value) in program.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
        }
        for name in
            ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"]
        {
            command.env(name, "1");
        }
        command.env("OMPI_MCA_hwloc_base_binding_policy", "none").current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run_by(place: &Place, processes: usize, arguments: &[&str]) -> Ended {
        Running::start(mpirun(place, &vec![arguments; processes])).end()
    }

    #[test]
    fn processes_take_the_steps_of_one() {
        type Edit = fn(Config) -> Config;
        let cases: [(&str, &str, Edit); 6] = [
            ("LoRA with dropout", "--lora", |c| c),
            ("packed", "--lora", |c| c.with("sample_packing", "true").with("gradient_checkpointing", "true")),
            ("QLoRA with DoRA", "--qlora", |c| c.with("adapter", "\"qlora\"").with("peft_use_dora", "true")),
            ("full, pulled to its start", "--full", |c| {
                c.without("lora_r").without("lora_dropout").with("adapter", "\"full\"").with("l2_sp", "0.01")
            }),
            ("the best is kept, and no more steps are taken than help", "--lora", |c| {
                c.with("load_best_model_at_end", "true")
                    .with("early_stopping_patience", "1")
                    .with("eval_steps", "1")
                    .with("save_steps", "1")
                    .with("learning_rate", "0.05")
            }),
            ("rank-stabilised", "--lora", |c| c.with("peft_use_rslora", "true")),
        ];
        for (what, flag, edit) in cases {
            let place = Place::new();
            let (alone, one) = config(&place, 1, 6, edit);
            place.run(&[flag, &alone]).expect(0);
            for (processes, each) in [(2, 3), (3, 2), (6, 1)] {
                let (shared, several) = config(&place, processes, each, edit);
                run_by(&place, processes, &[flag, &shared]).expect(0);
                assert_close(&one, &several, &format!("{what}, {processes} processes"));
            }
        }
    }

    #[test]
    fn updates_in_the_backward_pass_are_those_behind_it() {
        let place = Place::new();
        let unclipped = |c: Config| c.with("max_grad_norm", "0");
        let (alone, one) = config(&place, 1, 3, unclipped);
        place.run(&["--lora", &alone]).expect(0);
        let (shared, several) = config(&place, 3, 1, |c| unclipped(c).with("optimizer_in_backward", "true"));
        run_by(&place, 3, &["--lora", &shared]).expect(0);
        assert_close(&one, &several, "in the backward pass");
    }

    #[test]
    fn a_run_that_was_killed_ends_with_the_bytes_of_one_that_was_not() {
        let place = Place::new();
        let often = |c: Config| c.with("save_steps", "1").with("max_steps", "40");
        let (whole, unbroken) = config(&place, 2, 2, often);
        run_by(&place, 2, &["--lora", &whole]).expect(0);
        let (config, out) = config(&place, 2, 1, |c| often(c).with("gradient_accumulation_steps", "2"));
        let mut running = Running::start(mpirun(&place, &[&["--lora", &config], &["--lora", &config]]));
        let first = out.join("checkpoints/step-00000003/manifest.json");
        assert!(running.wait_until(|| first.exists()));
        running.signal(Signal::SIGTERM);
        assert_ne!(running.end().code, 0);
        let folder = out.to_str().unwrap();
        for processes in [1, 3] {
            let arguments: &[&str] = &["resume", folder];
            let ended =
                if processes == 1 { place.run(arguments) } else { run_by(&place, processes, arguments) };
            ended.expect(2).says(&["made by 2 processes", "mpirun -np 2"]);
        }
        run_by(&place, 2, &["resume", folder]).expect(0);
        assert_same(&unbroken, &out, "killed");
    }

    #[test]
    fn a_fault_is_said_once_and_nobody_waits() {
        let place = Place::new();
        let ended = run_by(&place, 2, &["--lora", "nowhere.toml"]).expect(2);
        assert_eq!(ended.stderr.matches("nowhere.toml").count(), 1, "{}", ended.stderr);
        // The loss is no number in either process.
        let (config, _) = config(&place, 2, 1, |c| c.with("learning_rate", "1e30").with("warmup_steps", "0"));
        let ended = run_by(&place, 2, &["--lora", &config]).expect(7);
        assert_eq!(ended.stderr.matches("no weight was changed").count(), 1, "{}", ended.stderr);
    }

    #[test]
    fn processes_that_learn_from_other_rows_are_refused() {
        let place = Place::new();
        let (one, _) = config(&place, 2, 1, |c| c);
        let rows = std::fs::read_to_string(run::golden("llama/rows.jsonl")).unwrap();
        let fewer: String = rows.split_inclusive('\n').skip(1).collect();
        let fewer = place.file("fewer.jsonl", &fewer);
        let (other, _) =
            config(&place, 2, 2, |c| c.rows(&fewer, "tokenized").with("gradient_accumulation_steps", "1"));
        let both = mpirun(&place, &[&["--lora", &one], &["--lora", &other]]);
        Running::start(both).end().expect(5).says(&["the training data is not the same in all processes"]);
    }

    #[test]
    fn a_run_is_predicted_by_the_slowest_process() {
        let place = Place::new();
        let (config, out) = config(&place, 2, 2, |c| c);
        run_by(&place, 2, &["--lora", &config]).expect(0);
        let estimate = json(&out.join("estimate.json"));
        let (all, shared) = (&estimate["counts"], &estimate["counts"]["shared"]);
        assert_eq!(shared["processes"], 2);
        let [all, share] = [all, &shared["slowest"]].map(|counts| counts["tokens"].as_f64().unwrap());
        assert!(share < all && 2.0 * share >= all, "{share} of {all}");
        let memory = estimate["limits"]["memory_source"].as_str().unwrap();
        assert!(memory.contains("shared by 2 processes"), "{memory}");
    }
}

/// Started as torchrun starts processes: each alone, with variables that say which it is and where process 0 is. Without
/// GPUs the gradients go where the numbers go, in these tests alone.
#[cfg(feature = "faults")]
mod apart {
    use super::run::{self, Config, Ended, Place, Running, assert_same};
    use super::shared::{assert_close, config};
    use nix::sys::signal::Signal;
    use std::net::TcpListener;

    fn start(place: &Place, processes: usize, arguments: &[&str]) -> Vec<Running> {
        // The port behind the one that is named, free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() - 1;
        let one = |rank: usize| {
            let mut command = place.command(arguments);
            command.env("WORLD_SIZE", processes.to_string()).env("RANK", rank.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            Running::start(command)
        };
        (0..processes).rev().map(one).rev().collect()
    }

    fn end(all: Vec<Running>) -> Vec<Ended> {
        all.into_iter().map(Running::end).collect()
    }

    fn run_by(place: &Place, processes: usize, arguments: &[&str]) {
        for ended in end(start(place, processes, arguments)) {
            ended.expect(0);
        }
    }

    #[test]
    fn processes_take_the_steps_of_one() {
        type Edit = fn(Config) -> Config;
        let cases: [(&str, &str, Edit); 3] = [
            ("LoRA with dropout", "--lora", |c| c),
            ("QLoRA", "--qlora", |c| c.with("adapter", "\"qlora\"")),
            ("updates in the backward pass", "--lora", |c| {
                c.with("max_grad_norm", "0").with("optimizer_in_backward", "true")
            }),
        ];
        for (what, flag, edit) in cases {
            let place = Place::new();
            let each = if what == "updates in the backward pass" { 1 } else { 2 };
            let (alone, one) =
                config(&place, 1, 3 * each, |c| edit(c).with("optimizer_in_backward", "false"));
            place.run(&[flag, &alone]).expect(0);
            let (shared, several) = config(&place, 3, each, edit);
            run_by(&place, 3, &[flag, &shared]);
            assert_close(&one, &several, what);
        }
    }

    #[test]
    fn a_fault_of_process_0_is_said_once() {
        let place = Place::new();
        let mut all = end(start(&place, 2, &["--lora", "nowhere.toml"])).into_iter();
        all.next().unwrap().expect(2).says(&["nowhere.toml"]);
        assert_eq!(all.next().unwrap().expect(0).stderr, "");
    }

    #[test]
    fn a_process_that_is_killed_amid_a_step_ends_all_and_the_run_goes_on_as_if_nothing_had_been() {
        let place = Place::new();
        let often = |c: Config| c.with("save_steps", "1").with("max_steps", "150").with("eval_steps", "50");
        let (whole, unbroken) = config(&place, 2, 2, often);
        run_by(&place, 2, &["--lora", &whole]);
        for killed in [1, 0] {
            let name = |c: Config| often(c).with("gradient_accumulation_steps", "2");
            let (config, out) = config(&place, 2, 10 + killed, name);
            let mut all = start(&place, 2, &["--lora", &config]);
            let third = run::checkpoint(&out, 3);
            assert!(all[0].wait_until(|| third.exists()));
            all[killed].signal(Signal::SIGKILL);
            let said = format!("process {killed} of this run is gone");
            let ended = end(all);
            assert_eq!(ended[killed].code, -9, "it had ended before");
            let left = ended.into_iter().nth(1 - killed).unwrap();
            left.expect(5).says(&[&said]);
            run_by(&place, 2, &["resume", out.to_str().unwrap()]);
            assert_same(&unbroken, &out, &said);
        }
    }
}
