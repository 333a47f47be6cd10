//! Machines: which instructions they have, and how LLVM is told.

use std::collections::BTreeSet;
use std::sync::Once;

use inkwell::OptimizationLevel;
use inkwell::targets::{
    CodeModel, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetMachineOptions, TargetTriple,
};

use super::dot::Dot;
use crate::jit::{CodegenError, Options};

/// A machine to compile for, by LLVM's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As in `aarch64-unknown-linux-gnu`.
    pub triple: String,
    /// The CPU, such as `x86-64-v3`; `generic` for any.
    pub cpu: String,
    /// What it has beyond that, such as `+dotprod,-sve`.
    pub features: String,
}

/// What the translation depends on.
#[derive(Clone, Debug)]
pub(super) struct Features {
    pub dot: Dot,
    /// Conversions between f16 and f32 are instructions.
    pub f16: bool,
}

/// Registers the machines that this crate compiles for.
fn initialize() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let config = InitializationConfig::default();
        LlvmTarget::initialize_x86(&config);
        LlvmTarget::initialize_aarch64(&config);
    });
}

impl Target {
    /// This machine, or the baseline of its architecture.
    pub fn host(opts: &Options) -> Target {
        initialize();
        let triple = TargetMachine::get_default_triple().as_str().to_string_lossy().into_owned();
        if !opts.host_features {
            let cpu = if cfg!(target_arch = "x86_64") { "x86-64" } else { "generic" };
            return Target { triple, cpu: cpu.into(), features: String::new() };
        }
        let cpu = TargetMachine::get_host_cpu_name().to_string();
        let mut features = TargetMachine::get_host_cpu_features().to_string();
        if !opts.dot_instructions {
            let off = match cfg!(target_arch = "x86_64") {
                true => ",-avx512vnni,-avxvnni",
                false => ",-dotprod,-i8mm",
            };
            features.push_str(off);
        }
        Target { triple, cpu, features }
    }

    /// LLVM's code generator for it.
    pub(super) fn machine(&self) -> Result<TargetMachine, CodegenError> {
        initialize();
        let host = |what: String| CodegenError::Host(format!("{}: {what}", self.triple));
        let triple = TargetTriple::create(&self.triple);
        let target = LlvmTarget::from_triple(&triple).map_err(|e| host(e.to_string()))?;
        let options = TargetMachineOptions::new()
            .set_cpu(&self.cpu)
            .set_features(&self.features)
            .set_level(OptimizationLevel::Default)
            .set_reloc_mode(RelocMode::PIC)
            .set_code_model(CodeModel::Default);
        let machine = target.create_target_machine_from_options(&triple, options);
        machine.ok_or_else(|| host(format!("LLVM has no machine for CPU `{}`", self.cpu)))
    }

    /// What code for it may use: what is named in `features`, and what the named levels of x86-64 imply.
    pub(super) fn translation(&self) -> Features {
        let mut on = BTreeSet::new();
        for f in self.features.split(',') {
            match f.split_at_checked(1) {
                Some(("+", name)) => drop(on.insert(name)),
                Some(("-", name)) => drop(on.remove(name)),
                _ => {}
            }
        }
        let off = |name: &str| self.features.split(',').any(|f| f.strip_prefix('-') == Some(name));
        let implied: &[&str] = match self.cpu.as_str() {
            "x86-64-v2" => &["ssse3"],
            "x86-64-v3" => &["ssse3", "avx2", "f16c"],
            "x86-64-v4" => &["ssse3", "avx2", "f16c", "avx512bw", "avx512vl"],
            _ => &[],
        };
        on.extend(implied.iter().filter(|n| !off(n)));
        let has = |name: &str| on.contains(name);
        if self.triple.starts_with("aarch64") || self.triple.starts_with("arm64") {
            let dot = if has("dotprod") { Dot::Neon { mixed: has("i8mm") } } else { Dot::Plain };
            return Features { dot, f16: true };
        }
        let dot = if has("avx512vnni") && has("avx512vl") {
            Dot::Vnni(16)
        } else if has("avxvnni") {
            Dot::Vnni(8)
        } else if has("avx512bw") {
            Dot::Pairs(16)
        } else if has("avx2") {
            Dot::Pairs(8)
        } else if has("ssse3") {
            Dot::Pairs(4)
        } else {
            Dot::Plain
        };
        Features { dot, f16: has("f16c") }
    }
}
