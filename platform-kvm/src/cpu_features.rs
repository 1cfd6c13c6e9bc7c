//! What the processor says of itself in CPUID leaf 1, as Linux hands it to programs.

/// Feature bits of CPUID leaf 1, register EDX (`AT_HWCAP` on x86-64).
pub fn cpu_features() -> u32 {
    core::arch::x86_64::__cpuid(1).edx
}
