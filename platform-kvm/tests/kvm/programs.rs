//! Guest code, position independent.

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $($line:literal),+;)+) => {
        $(
            core::arch::global_asm!(
                ".pushsection .rodata",
                concat!(".global guest_", stringify!($name)),
                concat!("guest_", stringify!($name), ":"),
                $($line,)+
                concat!(".global guest_", stringify!($name), "_end"),
                concat!("guest_", stringify!($name), "_end:"),
                ".byte 0",
                ".popsection",
            );
            $(#[$doc])*
            pub fn $name() -> &'static [u8] {
                unsafe extern "C" {
                    #[link_name = concat!("guest_", stringify!($name))]
                    static START: u8;
                    #[link_name = concat!("guest_", stringify!($name), "_end")]
                    static END: u8;
                }
                let (start, end) = (&raw const START, &raw const END);
                // SAFETY: both labels delimit the bytes emitted between them in read-only data.
                unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
            }
        )+
    };
}

/// Where in `touches` the instruction that faults is.
pub const TOUCHES_AT: u64 = 0;

programs! {
    /// Writes to r12 - rbx pages in turn, the first at rdi; then system call 1000.
    touches: "2: mov [rdi], rdi", "inc rbx", "add rdi, 4096", "cmp rbx, r12", "jb 2b", "mov eax, 1000", "syscall", "3: ud2";
    /// Nothing but system calls.
    syscalls: "2: syscall", "jmp 2b";
    /// Calls number 39 with rbx in rdi, which must return rdi + 7 and keep the carry, for every rbx below r12; then number 1000.
    counted_calls: "2: mov eax, 39", "mov rdi, rbx", "stc", "syscall", "jnc 3f", "sub rax, rdi", "cmp rax, 7", "jne 3f",
                   "inc rbx", "cmp rbx, r12", "jb 2b", "mov eax, 1000", "syscall", "3: ud2";
    /// The same from a patched call site: through the second entry of the stub if GS is a slot, else by `syscall`. Also checks rcx, the flags in
    /// r11 and the red zone.
    patched_calls: "2: mov eax, 39", "mov rdi, rbx", "mov [rsp - 64], rbx", "stc",
                   "mov rcx, gs:[96]", "lea rcx, [rcx - 0x12345677]", "jrcxz 6f", "syscall",
                   "5: jnc 3f", "lea rdi, [rip + 5b]", "cmp rcx, rdi", "jne 3f", "test r11b, 1", "jz 3f",
                   "cmp [rsp - 64], rbx", "jne 3f", "mov rdi, rbx", "sub rax, rdi", "cmp rax, 7", "jne 3f",
                   "inc rbx", "cmp rbx, r12", "jb 2b", "mov eax, 1000", "syscall", "3: ud2",
                   "6: lea rcx, [rip + 5b]", "jmp gs:[104]";
    /// As `counted_calls`, every other 64 with the stack pointer that is in r13; all must lead back to ring 3.
    rings: "2: test bl, 63", "jnz 4f", "xchg rsp, r13", "4: mov eax, 39", "mov rdi, rbx", "syscall", "sub rax, rdi", "cmp rax, 7", "jne 3f", "mov eax, cs", "cmp eax, 0x33",
           "jne 3f", "inc rbx", "cmp rbx, r12", "jb 2b", "mov eax, 1000", "syscall", "3: ud2";
    /// Writes to each of the rsi bytes from rdi on, ever other bytes.
    scribble: "2: mov rcx, rsi", "3: imul rax, rax, 0x5851f42d", "add rax, 0x14057b7f", "mov rdx, rax", "shr rdx, 29",
              "mov [rdi + rcx - 8], rdx", "and dword ptr [rdi + rcx - 8], 14", "sub rcx, 4", "cmp rcx, 8", "ja 3b", "jmp 2b";
    /// Spins.
    spin: "2: jmp 2b";
    /// Counts at [rdi].
    count: "2: inc qword ptr [rdi]", "jmp 2b";
    /// Copies [rsi] to [rdi] for ever, counting at [rdi + 8].
    watch: "2: mov rax, [rsi]", "mov [rdi], rax", "inc qword ptr [rdi + 8]", "jmp 2b";
    /// Waits until the word at rdi differs from the one after it, writes it to [rsi], then there.
    obey: "2: mov rax, [rdi]", "cmp rax, [rdi + 8]", "je 2b", "mov [rsi], rax", "mov [rdi + 8], rax", "jmp 2b";
    /// Calls rsi for ever, stores what it returns at [rdi], counts at [rdi + 8].
    call: "2: call rsi", "mov [rdi], rax", "inc qword ptr [rdi + 8]", "jmp 2b";
    /// Returns a constant that the host may change (at offset 1).
    constant: "mov eax, 0x11111111", "ret";
    /// Reads the words at rsi + i * 4096 for i < rcx in turn, each of which must hold its own i or be skipped: a wrong one is reported by a
    /// system call with i in rdi and the word in rax. A fault at `mov` is skipped by the host, to rip + 3 with rax = i.
    patrol: "2: xor edi, edi", "mov rdx, rsi",
            "3: mov rax, [rdx]", "cmp rax, rdi", "jne 5f",
            "4: add rdx, 4096", "inc rdi", "cmp rdi, r8", "jb 3b", "inc qword ptr [r9]", "jmp 2b",
            "5: syscall", "jmp 4b";
    /// rdtsc to [rdi], then a system call.
    tsc: "2: rdtsc", "shl rdx, 32", "or rax, rdx", "mov [rdi], rax", "syscall", "jmp 2b";
    /// xmm, ymm and the x87 stack from [rsi]; system call; back to [rdi]; system call.
    fpu: "2: vmovdqu ymm0, [rsi]", "vmovdqu ymm15, [rsi + 32]", "fld qword ptr [rsi]", "syscall",
         "vmovdqu [rdi], ymm0", "vmovdqu [rdi + 32], ymm15", "fstp qword ptr [rdi + 64]", "syscall", "jmp 2b";
    /// The same with zmm31 and a mask register.
    fpu512: "2: vmovdqu64 zmm31, [rsi]", "kmovq k7, [rsi + 64]", "syscall",
            "vmovdqu64 [rdi], zmm31", "kmovq [rdi + 64], k7", "syscall", "jmp 2b";
    /// fs and gs base: reads both, writes rsi and rdx, system call.
    bases: "2: rdfsbase rax", "rdgsbase rbx", "syscall", "wrfsbase rsi", "wrgsbase rdx", "syscall", "jmp 2b";
    /// Loads ds and es from eax after a system call, which shows the old ones in ebx and ecx.
    segments: "2: mov ebx, ds", "mov edx, es", "syscall", "mov ds, eax", "mov es, eax", "syscall", "jmp 2b";
}

/// One instruction, for faults.
pub mod one {
    programs! {
        divide: "xor ecx, ecx", "div ecx";
        breakpoint: "int3";
        overflow: "int 4";
        invalid: "ud2";
        protection: "hlt";
        /// Non-canonical through rsp: #SS.
        stack: "mov rax, 0x8000000000000000", "mov rsp, rax", "pop rax";
        /// FPU error with unmasked exceptions: #MF.
        x87: "fninit", "mov dword ptr [rsp - 8], 0x300", "fldcw word ptr [rsp - 8]", "fldz", "fld1", "fdivrp", "fwait";
        /// SIMD error with unmasked exceptions: #XM.
        simd: "mov dword ptr [rsp - 8], 0", "ldmxcsr [rsp - 8]", "xorps xmm0, xmm0", "mov eax, 1",
              "cvtsi2ss xmm1, eax", "divss xmm1, xmm0";
        /// A misaligned read with the alignment check on: #AC.
        alignment: "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov eax, [rsp + 1]";
        /// A selector that does not exist: #GP with an error code.
        selector: "mov eax, 0xfff3", "mov ds, eax";
        debug: "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop", "nop";
        read: "mov rax, [rdi]", "syscall";
        write: "mov [rdi], rax";
        jump: "jmp rdi";
        out: "mov edx, edi", "out dx, al", "nop", "nop";
        inb: "mov edx, edi", "in al, dx", "nop", "nop";
        cli: "cli";
        rdmsr: "mov ecx, 0xc0000082", "rdmsr";
        mov_cr3: "mov rax, cr3";
        lgdt: "lgdt [rsp]";
        swapgs: "swapgs";
        sysret: "sysretq";
        vmcall: "vmcall";
        vmmcall: "vmmcall";
        int80: "int 0x80";
        sysenter: "sysenter";
        far_jump: "push 0x23", "lea rax, [rip + 6]", "push rax", "retfq", "nop", "nop", "nop", "nop", "nop", "nop", "nop", "nop";
    }
}
