//! Control groups, versions 1 and 2: where this process's lie, what they allow, and what they use. In a container they
//! count, not the host.

use super::procfs::Kept;
use std::path::{Component, Path, PathBuf};

/// Folders of this process's cgroups and of all above them, the roots first: each may hold a limit. `proc` and `cgroup`
/// are where the system's files lie.
pub(super) fn folders(proc: &Path, cgroup: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let mut folders = vec![cgroup.to_owned(), cgroup.join("memory"), cgroup.join("cpu")];
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => cgroup.to_owned(),
            _ => match controllers.split(',').find(|c| matches!(*c, "memory" | "cpu")) {
                Some(controller) => cgroup.join(controller),
                None => continue,
            },
        };
        let relative = Path::new(path.trim_start_matches('/'));
        if relative.components().all(|c| matches!(c, Component::Normal(_))) {
            folders.extend(relative.ancestors().filter(|p| !p.as_os_str().is_empty()).map(|p| root.join(p)));
        }
    }
    folders
}

/// Bytes that a cgroup may hold; "max" and version 1's huge default are no limit.
pub(super) fn memory_limit(folder: &Path) -> Option<u64> {
    let text = read(&folder.join("memory.max")).or_else(|| read(&folder.join("memory.limit_in_bytes")))?;
    text.parse().ok().filter(|&bytes| bytes < 1 << 60)
}

/// Cores that a cgroup's quota amounts to.
pub(super) fn cpu_quota(folder: &Path) -> Option<f64> {
    let (quota, period) = match read(&folder.join("cpu.max")) {
        Some(text) => {
            let (quota, period) = text.split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => (
            read(&folder.join("cpu.cfs_quota_us"))?.parse().ok()?,
            read(&folder.join("cpu.cfs_period_us"))?.parse().ok()?,
        ),
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// The memory that the innermost cgroup of this process uses, page cache included.
#[derive(Debug)]
pub(super) struct GroupMemory {
    now: Kept,
    peak: PathBuf,
    /// The tightest limit of it and of all above.
    pub(super) limit_bytes: Option<u64>,
}

impl GroupMemory {
    /// Where it can be read; `None` on a machine without groups. A root of version 1 is the whole machine, and none of
    /// ours.
    pub(super) fn open(proc: &Path, cgroup: &Path) -> Option<Self> {
        let folders = folders(proc, cgroup);
        let limit_bytes = folders.iter().filter_map(|folder| memory_limit(folder)).min();
        let names =
            [("memory.current", "memory.peak"), ("memory.usage_in_bytes", "memory.max_usage_in_bytes")];
        let depth = |folder: &Path| folder.components().count();
        let mut found: Vec<(usize, Self)> = Vec::new();
        for folder in &folders {
            for (now, peak) in names {
                let is_machine =
                    now.contains("usage") && folder == &cgroup.join("memory") && limit_bytes.is_none();
                if let Some(now) = Kept::open(&folder.join(now)).filter(|_| !is_machine) {
                    found.push((depth(folder), Self { now, peak: folder.join(peak), limit_bytes }));
                }
            }
        }
        found.into_iter().max_by_key(|(depth, _)| *depth).map(|(_, group)| group)
    }

    /// Bytes now.
    pub(super) fn now(&self) -> Option<u64> {
        self.now.read(|text| text.trim().parse().ok())
    }

    /// The most since the group was made.
    pub(super) fn peak(&self) -> Option<u64> {
        read(&self.peak)?.parse().ok()
    }
}

fn read(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(files: &[(&str, &str)]) -> Option<(Option<u64>, Option<u64>, Option<u64>)> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let group = GroupMemory::open(&root.path().join("proc"), &root.path().join("cg"))?;
        Some((group.now(), group.peak(), group.limit_bytes))
    }

    #[test]
    fn the_innermost_group_is_read_and_the_tightest_limit_holds() {
        let found = open(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("cg/a/memory.max", "5000\n"),
            ("cg/a/memory.current", "900\n"),
            ("cg/a/b/memory.max", "max\n"),
            ("cg/a/b/memory.current", "300\n"),
            ("cg/a/b/memory.peak", "400\n"),
        ]);
        assert_eq!(found, Some((Some(300), Some(400), Some(5000))));
    }

    #[test]
    fn a_containers_root_is_its_group_and_a_whole_machine_is_none() {
        let container = [("proc/self/cgroup", "0::/\n"), ("cg/memory.current", "300\n")];
        assert_eq!(open(&container), Some((Some(300), None, None)));
        let machine = ("cg/memory/memory.usage_in_bytes", "99\n");
        assert_eq!(open(&[("proc/self/cgroup", "4:memory:/\n"), machine]), None);
        let limited = ("cg/memory/memory.limit_in_bytes", "1000\n");
        assert_eq!(
            open(&[("proc/self/cgroup", "4:memory:/\n"), machine, limited]),
            Some((Some(99), None, Some(1000)))
        );
        assert_eq!(open(&[]), None);
    }
}
