//! The memory of a process, as the kernel counts it.

use std::path::PathBuf;

/// Resident bytes of a process now, and the most since the last [`forget_peak`].
pub(crate) fn resident(process: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// Begins the peak anew.
pub(crate) fn forget_peak(process: u32) {
    std::fs::write(format!("/proc/{process}/clear_refs"), "5").expect("one's own process");
}

/// What this process holds open below a folder.
pub(crate) fn held_below(folder: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir("/proc/self/fd")
        .expect("the descriptors of this process")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(folder))
        .collect()
}

/// Mebibytes, for reading.
pub(crate) fn mib(bytes: u64) -> f64 {
    let tenths = u32::try_from((bytes * 10) >> 20).unwrap_or(u32::MAX);
    f64::from(tenths) / 10.0
}
