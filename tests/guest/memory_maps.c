/* mmap, munmap, mprotect, mremap, madvise, brk, and what a fault on each gives. */
#include "check.h"
#include <setjmp.h>

static sigjmp_buf back;
static void handler(int signal) { siglongjmp(back, signal); }

/* What reading or writing a byte does: "ok", or the signal. */
static const char *touch(volatile char *address, int writing) {
    int signal = sigsetjmp(back, 1);
    if (signal)
        return sigabbrev_np(signal);
    if (writing)
        *address = 7;
    else
        (void)*address;
    return "ok";
}

static void show_touch(const char *what, void *address) {
    printf("%s: read %s", what, touch(address, 0));
    printf(", write %s\n", touch(address, 1));
}

static char *map(size_t pages, int protection) {
    return mmap(NULL, pages * 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void anonymous(void) {
    char *memory = map(16, PROT_READ | PROT_WRITE);
    int zero = 1;
    for (int i = 0; i < 16 * 4096; i++)
        zero &= memory[i] == 0;
    printf("zero filled %d\n", zero);
    TRY(munmap(memory + 4096, 4096));
    show_touch("hole", memory + 4096);
    show_touch("beside", memory + 8192);
    TRY(mprotect(memory + 8192, 4096, PROT_READ));
    show_touch("read only", memory + 8192);
    TRY(mprotect(memory + 12288, 4096, PROT_NONE));
    show_touch("none", memory + 12288);
    TRY(mprotect(memory + 12288, 4096, PROT_READ | PROT_WRITE));
    show_touch("again", memory + 12288);
    TRY(mprotect(memory, 3 * 4096, PROT_READ));
    TRY(mprotect(memory + 1, 4096, PROT_READ));
    TRY(mprotect(memory + 16384, 4096, 0x100));
    memory[20480] = 55;
    TRY(madvise(memory + 20480, 4096, MADV_DONTNEED));
    printf("after DONTNEED %d\n", memory[20480]);
    TRY(madvise(memory + 20480, 4096, 9999));
    TRY(madvise(memory + 4096, 4096, MADV_DONTNEED));
    TRY(munmap(memory + 1, 4096));
    TRY(munmap(memory, 0));
    TRY(munmap(memory, 16 * 4096));
    TRY(munmap(memory, 16 * 4096));
}

static void fixed(void) {
    char *memory = map(8, PROT_READ | PROT_WRITE);
    memset(memory, 'a', 8 * 4096);
    printf("fixed: %d\n", mmap(memory + 4096, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory + 4096);
    printf("replaced: %d %d\n", memory[4096], memory[8192]);
    TRY_OK(mmap(memory, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    TRY_OK(mmap(memory + 1, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    TRY_OK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TRY_OK(mmap(NULL, 4096, PROT_READ, MAP_ANONYMOUS, -1, 0));
    TRY_OK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 999, 0));
    TRY_OK(mmap(NULL, 1ul << 48, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TRY_OK(mmap((void *)0xffff800000000000ul, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    munmap(memory, 8 * 4096);
}

static void remap(void) {
    char *memory = map(4, PROT_READ | PROT_WRITE);
    memset(memory, 'm', 4 * 4096);
    char *larger = mremap(memory, 4 * 4096, 64 * 4096, MREMAP_MAYMOVE);
    printf("larger: %c %d\n", larger[4 * 4096 - 1], larger[4 * 4096]);
    char *smaller = mremap(larger, 64 * 4096, 2 * 4096, 0);
    printf("smaller in place: %d, cut: %s\n", smaller == larger, touch(larger + 3 * 4096, 0));
    char *target = map(4, PROT_NONE);
    char *moved = mremap(smaller, 2 * 4096, 2 * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    printf("moved: %d %c, old: %s\n", moved == target, moved[4096], touch(smaller, 0));
    char *left = mremap(moved, 2 * 4096, 2 * 4096, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
    printf("left behind: %d, moved %c\n", moved[0], left[0]);
    TRY_OK(mremap(moved + 1, 4096, 4096, 0));
    TRY_OK(mremap((void *)0x10000, 4096, 8192, MREMAP_MAYMOVE));
    TRY_OK(mremap(left, 4096, 0, MREMAP_MAYMOVE));
    char *barrier = map(3, PROT_READ | PROT_WRITE);
    TRY_OK(mremap(barrier, 4096, 8192, 0));
}

static void files(void) {
    int file = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    char text[8192];
    memset(text, 'f', sizeof text);
    write(file, text, 6000);
    char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    printf("tail %d %c\n", shared[6500], private[5999]);
    shared[0] = 'S';
    private[1] = 'P';
    pread(file, text, 4, 0);
    printf("file %.4s, private %.4s\n", text, private);
    pwrite(file, "W", 1, 100);
    printf("written through: shared %c private page that was copied %c\n", shared[100], private[100]);
    pwrite(file, "V", 1, 5000);
    printf("private page that was not: %c\n", private[5000]);
    TRY(msync(shared, 8192, MS_SYNC));
    TRY(msync(shared, 8192, MS_SYNC | MS_ASYNC));
    TRY(ftruncate(file, 100));
    printf("cut: page 1 %s, page 0 %s, byte %d\n", touch(shared + 4096, 0), touch(shared, 0), shared[100]);
    printf("private copy stays: %c, page not copied: %s\n", private[1], touch(private + 4096, 0));
    TRY(ftruncate(file, 8192));
    printf("grown: %d %s\n", shared[4096], touch(shared + 4096, 1));
    close(file);
    printf("after close: %c\n", shared[0]);
    int reading = open("mapped", O_RDONLY);
    TRY_OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reading, 0));
    TRY_OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, reading, 0));
    TRY_OK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, reading, 100));
    char *locked = mmap(NULL, 4096, PROT_READ, MAP_SHARED, reading, 0);
    TRY(mprotect(locked, 4096, PROT_READ | PROT_WRITE));
    int writing = open("mapped", O_WRONLY);
    TRY_OK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, writing, 0));
    int directory = open(".", O_RDONLY);
    TRY_OK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, directory, 0));
    int zero = open("/dev/zero", O_RDWR);
    char *zeros = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
    printf("/dev/zero: %d %s\n", zeros[0], touch(zeros, 1));
    unsigned char in_core[2];
    TRY(mincore(shared, 8192, in_core));
    TRY(mincore(shared + 1, 4096, in_core));
}

static void forks(void) {
    size_t size = 32 << 20;
    char *private = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(private, 1, size);
    IN_CHILD("copy on write") {
        memset(private, 2, size / 2);
        shared[0] = 9;
        if (fork() == 0) {
            private[0] = 3;
            shared[1] = 8;
            _exit(0);
        }
        wait(NULL);
        printf("child sees %d %d\n", private[0], private[size - 1]);
    }
    long sum = 0;
    for (size_t i = 0; i < size; i += 4096)
        sum += private[i];
    printf("parent sees %ld, shared %d %d\n", sum, shared[0], shared[1]);
    char *wiped = map(1, PROT_READ | PROT_WRITE), *gone = map(1, PROT_READ | PROT_WRITE);
    wiped[0] = gone[0] = 1;
    TRY(madvise(wiped, 4096, MADV_WIPEONFORK));
    TRY(madvise(gone, 4096, MADV_DONTFORK));
    IN_CHILD("advised") { printf("wiped %d, gone: %s\n", wiped[0], touch(gone, 0)); }
}

static void heap(void) {
    char *start = sbrk(0);
    printf("grow: %s\n", sbrk(100000) == start ? "ok" : "no");
    start[50000] = 1;
    printf("shrink: %s\n", brk(start) == 0 && sbrk(0) == start ? "ok" : "no");
    printf("grown again: %d\n", (sbrk(100000), start[50000]));
    long result = syscall(SYS_brk, 0x1000);
    printf("low brk: %s\n", result == (long)sbrk(0) ? "refused" : "taken");
}

int main(void) {
    signal(SIGSEGV, handler);
    signal(SIGBUS, handler);
    anonymous();
    fixed();
    remap();
    files();
    forks();
    heap();
    char *locked = map(2, PROT_READ | PROT_WRITE);
    TRY(mlock(locked, 4096));
    TRY(munlock(locked, 4096));
    int sealed = memfd_create("name", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    TRY(ftruncate(sealed, 4096));
    TRY(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    TRY(ftruncate(sealed, 0));
    TRY(ftruncate(sealed, 8192));
    TRY(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL));
    TRY(write(sealed, "x", 1));
    TRY(fcntl(sealed, F_GET_SEALS));
    TRY(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK));
    TRY_OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, sealed, 0));
    TRY_OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, sealed, 0));
    int future = memfd_create("later", MFD_ALLOW_SEALING);
    TRY(ftruncate(future, 4096));
    char *before = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0);
    TRY(fcntl(future, F_ADD_SEALS, F_SEAL_WRITE));
    TRY(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
    show_touch("mapped before", before);
    TRY_OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0));
    char *read_only = mmap(NULL, 4096, PROT_READ, MAP_SHARED, future, 0);
    TRY(mprotect(read_only, 4096, PROT_READ | PROT_WRITE));
    show_touch("mapped after", read_only);
    TRY(munmap(before, 4096));
    before = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, future, 0);
    TRY(fcntl(future, F_ADD_SEALS, F_SEAL_WRITE));
    return 0;
}
