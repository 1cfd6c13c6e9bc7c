/* mmap, munmap, mprotect, mremap, brk: results, errors, and what the memory is like afterwards. */
#include "probe.h"
#include <sys/resource.h>

static long remap(void *old, size_t old_size, size_t new_size, int flags, void *new) {
    return syscall(SYS_mremap, old, old_size, new_size, flags, new);
}

static void protection(char *p) {
    STORE(p);
    TRY(mprotect(p, PAGE, PROT_READ));
    STORE(p);
    LOAD(p);
    TRY(mprotect(p, PAGE, PROT_NONE));
    LOAD(p);
    TRY(mprotect(p, PAGE, PROT_WRITE));
    LOAD(p);
    STORE(p);
    TRY(mprotect(p, PAGE, PROT_EXEC));
    LOAD(p);
    STORE(p);
    TRY(mprotect(p, PAGE, 0x100));
    TRY(mprotect(p + 1, PAGE, RW));
    TRY(mprotect(p, 0, RW));
    TRY(mprotect((void *)0x123000, PAGE, RW));
    TRY(mprotect(p, -PAGE, RW));
    TRY(mprotect(p, PAGE, RW | PROT_GROWSDOWN | PROT_GROWSUP));
    TRY(mprotect(p, PAGE, RW | PROT_GROWSDOWN));
    make_hole(p + 4 * PAGE);
    TRY(mprotect(p + 3 * PAGE, 3 * PAGE, PROT_READ));
    STORE(p + 3 * PAGE);
    TRY(syscall(SYS_pkey_mprotect, p, PAGE, RW, -1));
}

static void unmapping(char *p) {
    LOAD(p + 4 * PAGE);
    TRY(munmap(p + 4 * PAGE, PAGE));
    TRY(munmap(p + 1, PAGE));
    TRY(munmap(p, 0));
    TRY(munmap(p, -1UL));
    TRY(munmap((void *)0xffff800000000000UL, PAGE));
    LOAD(8);
    LOAD(0x8000000000000000UL);
    LOAD(0xffffffff81000000UL);
}

static void placing(char *p) {
    TRY_OK(mmap(NULL, 0, RW, PRIVATE, -1, 0));
    TRY_OK(mmap(NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0));
    TRY_OK(mmap(NULL, PAGE, RW, MAP_PRIVATE, -1, 0));
    TRY_OK(mmap(NULL, 0, RW, MAP_PRIVATE, -1, 0));
    TRY_OK(mmap(NULL, PAGE, RW, PRIVATE, -1, 1));
    TRY_OK(mmap(NULL, 1UL << 47, RW, PRIVATE, -1, 0));
    TRY_OK(mmap(NULL, -1UL, RW, PRIVATE, -1, 0));
    TRY_OK(mmap(p + 1, PAGE, RW, PRIVATE | MAP_FIXED, -1, 0));
    TRY_OK(mmap((void *)0x7ffffffff000, PAGE, RW, PRIVATE | MAP_FIXED, -1, 0));
    TRY_OK(mmap(p, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, -1, 0));
    printf("a taken hint: %d\n", mmap(p, PAGE, RW, PRIVATE, -1, 0) != (void *)p);
    printf("a free hint: %d\n", mmap((void *)0x20000000, PAGE, RW, PRIVATE, -1, 0) == (void *)0x20000000);
    TRY_OK(mmap(NULL, 2 << 20, RW, PRIVATE | MAP_HUGETLB, -1, 0));
    TRY_OK(mmap(NULL, PAGE, RW, SHARED | MAP_GROWSDOWN, -1, 0));
    TRY_OK(mmap(NULL, PAGE, RW, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0));
    printf("low: %d\n", (unsigned long)mmap(NULL, PAGE, RW, PRIVATE | MAP_32BIT, -1, 0) < 1UL << 31);
}

static void heap(void) {
    char *start = sbrk(0);
    TRY_OK(sbrk(3 * PAGE));
    start[0] = start[3 * PAGE - 1] = 1;
    TRY_OK(sbrk(-2 * (long)PAGE));
    LOAD(start + 2 * PAGE);
    TRY_OK(sbrk(2 * PAGE));
    printf("grown again: %d\n", start[3 * PAGE - 1]);
    TRY_OK(sbrk(1L << 46));
}

static void moving(void) {
    char *q = map_pages(5, RW, PRIVATE);
    memset(q, 7, 4 * PAGE);
    mprotect(q + 4 * PAGE, PAGE, PROT_NONE);
    TRY_OK(remap(q, 4 * PAGE, 8 * PAGE, 0, NULL));
    char *n = (char *)remap(q, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE, NULL);
    printf("moved: %d %d\n", n[4 * PAGE - 1], n[8 * PAGE - 1]);
    LOAD(q);
    TRY_OK(remap(n, 8 * PAGE, 2 * PAGE, 0, NULL));
    LOAD(n + 2 * PAGE);
    TRY_OK(remap(n, 2 * PAGE, 0, MREMAP_MAYMOVE, NULL));
    TRY_OK(remap(n + 1, PAGE, PAGE, MREMAP_MAYMOVE, NULL));
    TRY_OK(remap(n, PAGE, PAGE, 8, NULL));
    TRY_OK(remap(n, PAGE, PAGE, MREMAP_FIXED, n + 100 * PAGE));
    TRY_OK(remap(n, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, n + PAGE));
    TRY_OK(remap((void *)0x123000, PAGE, 2 * PAGE, MREMAP_MAYMOVE, NULL));
    TRY_OK(remap(n, PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
    TRY_OK(remap(n, 0, PAGE, MREMAP_MAYMOVE, NULL));
    char *shared = map_pages(2, RW, SHARED);
    shared[0] = 5;
    char *twin = (char *)remap(shared, 0, 2 * PAGE, MREMAP_MAYMOVE, NULL);
    twin[1] = 9;
    printf("twin: %d %d\n", twin[0], shared[1]);
    char *left = map_pages(1, RW, PRIVATE);
    left[0] = 3;
    char *taken = (char *)remap(left, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    printf("left behind: %d %d\n", taken[0], left[0]);
}

static int deep(int levels) {
    volatile char frame[4096];
    frame[0] = levels;
    frame[4095] = 1;
    return levels ? deep(levels - 1) + frame[0] * 0 : 0;
}

static void stack(void) {
    printf("1500 pages of stack: %d\n", deep(1500));
    IN_CHILD("too much stack") {
        struct rlimit limit = {1 << 20, RLIM_INFINITY};
        setrlimit(RLIMIT_STACK, &limit);
        deep(1 << 20);
    }
}

static void limits(void) {
    IN_CHILD("limits") {
        struct rlimit space = {200 << 20, 200 << 20}, data = {1 << 20, 1 << 20};
        TRY(setrlimit(RLIMIT_AS, &space));
        TRY_OK(mmap(NULL, 300 << 20, RW, PRIVATE, -1, 0));
        TRY(setrlimit(RLIMIT_DATA, &data));
        TRY_OK(mmap(NULL, 8 << 20, RW, PRIVATE, -1, 0));
        TRY_OK(mmap(NULL, 8 << 20, PROT_READ, PRIVATE, -1, 0));
        TRY_OK(sbrk(4 << 20));
    }
}

int main(void) {
    char *p = map_pages(16, RW, PRIVATE);
    protection(p);
    unmapping(p);
    placing(p);
    heap();
    moving();
    stack();
    limits();
    return 0;
}
