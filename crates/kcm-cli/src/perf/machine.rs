//! Where it was measured: a figure without its machine says little.

use std::fs;

use serde::Serialize;

/// The machine, as far as the figures depend on it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    cpu_model: String,
    cpus: usize,
    kernel: String,
    arch: &'static str,
    kcm_version: &'static str,
}

impl Machine {
    pub(super) fn this_one() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu_model: cpu_model(&cpuinfo),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            arch: std::env::consts::ARCH,
            kcm_version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        format!(
            "{} x {} ({}), Linux {}, kcm {}",
            self.cpus, self.cpu_model, self.arch, self.kernel, self.kcm_version
        )
    }
}

/// x86 has a model name; Arm has numbers only.
fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    field("model name")
        .or_else(|| {
            Some(format!(
                "implementer {} part {}",
                field("CPU implementer")?,
                field("CPU part")?
            ))
        })
        .unwrap_or_else(|| "unknown processor".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_both_architectures() {
        assert_eq!(
            cpu_model("processor\t: 0\nmodel name\t: A B: C\n"),
            "A B: C"
        );
        let arm = "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(cpu_model(arm), "implementer 0x41 part 0xd0c");
        assert_eq!(cpu_model(""), "unknown processor");
    }
}
