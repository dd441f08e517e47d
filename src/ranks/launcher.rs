//! What started this process, and how many others with it: launchers say so in the environment.

/// A variable by which a launcher says how many processes it started, and one that it sets beside it.
const SIZES: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    // Of one `srun`; what a job may use in all says nothing of this process.
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    // torchrun
    ("WORLD_SIZE", "RANK"),
];

/// Several processes that were started together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Launched {
    /// The variable that says so.
    pub(super) variable: &'static str,
    pub(super) size: usize,
}

/// What the environment says; `None` where this process is alone.
pub(super) fn launched(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let one = |(size, rank): &(&'static str, &str)| {
        number(rank)?;
        Some(Launched { variable: size, size: number(size)? })
    };
    SIZES.iter().find_map(one).filter(|launched| launched.size > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> Option<(&'static str, usize)> {
        let of = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        launched(of).map(|launched| (launched.variable, launched.size))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(with(&[]), None);
        let mpirun = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")];
        assert_eq!(with(&mpirun), Some(("OMPI_COMM_WORLD_SIZE", 4)));
        assert_eq!(with(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]), Some(("PMI_SIZE", 2)));
        assert_eq!(with(&[("WORLD_SIZE", "8"), ("RANK", "0")]), Some(("WORLD_SIZE", 8)));
    }

    #[test]
    fn one_process_or_a_number_alone_is_none() {
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]), None);
        assert_eq!(with(&[("WORLD_SIZE", "8")]), None);
        // A job of Slurm with eight tasks, of which this shell is none.
        assert_eq!(with(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(with(&[("PMI_SIZE", "many"), ("PMI_RANK", "0")]), None);
    }
}
