//! What started this process, and how many others with it: launchers say so in the environment.

/// Variables by which a launcher says how many processes it started, and which of them this one is.
const LAUNCHERS: [(Launcher, &str, &str); 4] = [
    (Launcher::OpenMpi, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    (Launcher::Pmi, "PMI_SIZE", "PMI_RANK"),
    // Of one `srun`; what a job may use in all says nothing of this process.
    (Launcher::Slurm, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    // Last: wrappers set these beside another launcher's.
    (Launcher::Torchrun, "WORLD_SIZE", "RANK"),
];
/// Set by torchrun alone, which may itself be started by one of the others, once a machine.
const BY_TORCHRUN: &str = "TORCHELASTIC_RUN_ID";

/// Who started the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launcher {
    /// torchrun, or whoever sets the same variables.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// Another MPI's.
    Pmi,
    /// `srun`.
    Slurm,
}

/// Several processes that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launched {
    pub(super) by: Launcher,
    /// The variable that says so.
    pub(super) variable: &'static str,
    pub(super) rank: usize,
    pub(super) size: usize,
    /// Where process 0 can be met: host and port. `None` where nothing says on which machine it is.
    pub(super) meeting: Option<(String, u16)>,
    /// The same for these processes and for no others that may meet at the same place.
    pub(super) run: String,
}

/// Ports for launchers that name none.
const FIRST_PORT: u16 = 20_000;
const PORTS: u64 = 20_000;

/// What the environment says; `None` where this process is alone.
pub(super) fn launched(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let is_torchrun = variable(BY_TORCHRUN).is_some();
    let (by, name, size, rank) = LAUNCHERS.iter().find_map(|&(by, name, rank)| {
        let (size, rank) = (number(name)?, number(rank)?);
        let is_it = size > 1 && rank < size && (by == Launcher::Torchrun || !is_torchrun);
        is_it.then_some((by, name, size, rank))
    })?;
    // A second attempt of the same launch may meet what is left of the first.
    let of_run: &[&str] = match by {
        Launcher::Torchrun => &["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"],
        Launcher::OpenMpi | Launcher::Pmi => &["PMIX_NAMESPACE", "PMI_JOBID"],
        Launcher::Slurm => &["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"],
    };
    let run: String = of_run.iter().filter_map(|name| Some(format!("{name}={} ", variable(name)?))).collect();
    let host = variable("MASTER_ADDR").or_else(|| match by {
        Launcher::Torchrun => None,
        Launcher::OpenMpi => (number("OMPI_COMM_WORLD_LOCAL_SIZE")? == size).then(|| "127.0.0.1".into()),
        Launcher::Pmi => (number("MPI_LOCALNRANKS")? == size).then(|| "127.0.0.1".into()),
        Launcher::Slurm => first_host(&variable("SLURM_STEP_NODELIST")?),
    });
    let port = match variable("MASTER_PORT") {
        // The port itself is torchrun's own.
        Some(port) => port.parse::<u16>().ok().and_then(|port| port.checked_add(1)),
        // Of runs that nothing tells apart only a named port does.
        None => (!run.is_empty()).then(|| own_port(&run)),
    };
    Some(Launched { by, variable: name, rank, size, meeting: host.zip(port), run })
}

/// A port that processes of one run agree on, and those of another most likely do not.
fn own_port(run: &str) -> u16 {
    let hash = crate::fs::sha256_bytes(run.as_bytes());
    let number = hash.get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default();
    FIRST_PORT + u16::try_from(number % PORTS).unwrap_or_default()
}

/// The first of Slurm's list of hosts: of `gpu[07-09,12],login` it is `gpu07`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let host = match rest.strip_prefix('[') {
        None => name.to_owned(),
        Some(numbers) => {
            let (numbers, behind) = numbers.split_once(']')?;
            let first = numbers.split([',', '-']).next()?;
            let behind = behind.split(',').next().unwrap_or_default();
            format!("{name}{first}{behind}")
        }
    };
    (!host.is_empty() && !host.contains('[')).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> Option<Launched> {
        launched(|name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn who(set: &[(&str, &str)]) -> Option<(&'static str, usize, usize)> {
        with(set).map(|launched| (launched.variable, launched.rank, launched.size))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(who(&[]), None);
        let mpirun = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")];
        assert_eq!(who(&mpirun), Some(("OMPI_COMM_WORLD_SIZE", 3, 4)));
        assert_eq!(who(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]), Some(("PMI_SIZE", 0, 2)));
        let torchrun = [("WORLD_SIZE", "8"), ("RANK", "5")];
        assert_eq!(who(&torchrun), Some(("WORLD_SIZE", 5, 8)));
        // torchrun on each of two machines, started by srun.
        let under = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1"), (BY_TORCHRUN, "17")];
        assert_eq!(who(&[&under[..], &torchrun].concat()), Some(("WORLD_SIZE", 5, 8)));
        // What a wrapper sets beside mpirun, rightly or not.
        for left in ["8", "1"] {
            let beside = [("WORLD_SIZE", left), ("RANK", "0")];
            assert_eq!(who(&[&mpirun[..], &beside].concat()), Some(("OMPI_COMM_WORLD_SIZE", 3, 4)));
        }
        assert_eq!(
            who(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]
                .iter()
                .chain(&torchrun)
                .copied()
                .collect::<Vec<_>>()),
            Some(("WORLD_SIZE", 5, 8))
        );
    }

    #[test]
    fn one_process_or_a_number_alone_is_none() {
        assert_eq!(who(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]), None);
        assert_eq!(who(&[("WORLD_SIZE", "8")]), None);
        // A job of Slurm with eight tasks, of which this shell is none.
        assert_eq!(who(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(who(&[("PMI_SIZE", "many"), ("PMI_RANK", "0")]), None);
        assert_eq!(who(&[("WORLD_SIZE", "2"), ("RANK", "2")]), None);
    }

    #[test]
    fn processes_of_one_launch_meet_at_one_place() {
        let torchrun =
            [("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")];
        assert_eq!(with(&torchrun).unwrap().meeting, Some(("node1".into(), 29_501)));
        assert_eq!(with(&torchrun[..2]).unwrap().meeting, None, "nothing says where");
        let full = [&torchrun[..3], &[("MASTER_PORT", "65535")]].concat();
        assert_eq!(with(&full).unwrap().meeting, None, "there is no port behind");
        let srun =
            [("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "2"), ("SLURM_STEP_NODELIST", "gpu[07-09]")];
        let at = |job: &str| with(&[&srun[..], &[("SLURM_JOB_ID", job)]].concat()).unwrap();
        let (host, port) = at("17").meeting.unwrap();
        assert_eq!(host, "gpu07");
        assert!(port >= FIRST_PORT && Some((host, port)) != at("18").meeting);
        assert_ne!(at("17").run, at("18").run);
        let mpirun = |local| {
            with(&[
                ("PMIX_NAMESPACE", "7"),
                ("OMPI_COMM_WORLD_SIZE", "4"),
                ("OMPI_COMM_WORLD_RANK", "3"),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", local),
            ])
        };
        assert_eq!(mpirun("4").unwrap().meeting.unwrap().0, "127.0.0.1");
        assert_eq!(mpirun("2").unwrap().meeting, None);
    }

    #[test]
    fn the_first_of_slurms_hosts_is_found() {
        let cases = [
            ("a", "a"),
            ("a,b", "a"),
            ("n[01-04,07],m", "n01"),
            ("gpu-3-[11,13]", "gpu-3-11"),
            ("r[1-2]n,x", "r1n"),
        ];
        for (list, first) in cases {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!([first_host(""), first_host("n[1")], [None, None]);
    }
}
