// File calls whose results are printed, one a line, to be compared between the host and a sandbox.
// Usage: files DIRECTORY SECTION. The directory is empty and on a tmpfs.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

#define P(call) show(__LINE__, #call, (long)(call))
static long show(int line, const char *what, long result) {
    int error = errno;
    if (result == -1) printf("%d %s = -1 %s\n", line, what, strerrorname_np(error));
    else printf("%d %s = %ld\n", line, what, result);
    errno = 0;
    return result;
}
// A descriptor: only whether there is one.
#define FD(call) shown_fd(__LINE__, #call, (call))
static int shown_fd(int line, const char *what, int fd) {
    if (fd < 0) printf("%d %s = -1 %s\n", line, what, strerrorname_np(errno));
    else printf("%d %s = fd\n", line, what);
    errno = 0;
    return fd;
}
static void put(const char *path, const char *text) {
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (write(fd, text, strlen(text)) < 0) perror("put");
    close(fd);
}
static void show_stat(int line, const char *what, const struct stat *s) {
    printf("%d %s: mode %o nlink %ld uid %d gid %d size %ld blocks %ld blksize %ld rdev %lx\n", line, what, s->st_mode,
           (long)s->st_nlink, s->st_uid, s->st_gid, S_ISDIR(s->st_mode) ? 0L : (long)s->st_size, (long)s->st_blocks,
           (long)s->st_blksize, (long)s->st_rdev);
}
#define ST(path) do { struct stat s; if (P(lstat(path, &s)) == 0) show_stat(__LINE__, path, &s); } while (0)
static char buf[1 << 16];
#define RD(fd, n) do { memset(buf, 0, 64); long r = P(read(fd, buf, n)); if (r > 0) printf("    \"%.*s\"\n", (int)r, buf); } while (0)
static int in_child(int (*act)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) { int code = act(); fflush(stdout); _exit(code); }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) printf("    killed by %s\n", sigabbrev_np(WTERMSIG(status)));
    else printf("    exit %d\n", WEXITSTATUS(status));
    return 0;
}

static void descriptors(void) {
    put("f", "0123456789");
    int fd = FD(open("f", O_RDWR | O_APPEND | O_CLOEXEC));
    P(fcntl(fd, F_GETFL)); P(fcntl(fd, F_GETFD)); P(fcntl(fd, F_SETFD, 0)); P(fcntl(fd, F_GETFD));
    P(fcntl(fd, F_SETFL, O_NONBLOCK)); P(fcntl(fd, F_GETFL)); P(fcntl(fd, F_SETFL, O_RDONLY)); P(fcntl(fd, F_GETFL));
    P(fcntl(fd, F_DUPFD, 100)); P(fcntl(fd, F_DUPFD_CLOEXEC, 100)); P(fcntl(101, F_GETFD)); P(fcntl(fd, F_DUPFD, -1));
    P(fcntl(fd, F_DUPFD, 1 << 30)); P(dup2(fd, 200)); P(dup2(fd, fd)); P(dup2(999, 5)); P(dup2(fd, -1)); P(dup3(fd, fd, 0));
    P(dup3(fd, 201, O_CLOEXEC)); P(fcntl(201, F_GETFD)); P(dup3(fd, 202, O_APPEND)); P(dup2(fd, 1 << 28));
    P(close(200)); P(close(200)); P(close(-1)); P(syscall(SYS_close_range, 100, 300, 0)); P(fcntl(101, F_GETFD));
    P(syscall(SYS_close_range, 5, 4, 0)); P(syscall(SYS_close_range, 500, 600, 8)); P(fcntl(fd, 9999)); P(fcntl(fd, F_GETPIPE_SZ));
    P(fcntl(fd, F_GETOWN)); P(fcntl(fd, F_SETOWN, getpid())); P(fcntl(fd, F_GETOWN) == getpid()); P(fcntl(fd, F_SETSIG, 99));
    P(fcntl(fd, F_GETLEASE)); P(fcntl(fd, F_GET_SEALS)); P(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
    int path = FD(open("f", O_PATH));
    P(fcntl(path, F_GETFL)); P(read(path, buf, 1)); P(write(path, buf, 1)); P(fchmod(path, 0600)); P(ioctl(path, FIONREAD, buf));
    P(lseek(path, 0, SEEK_SET)); P(fsync(path)); P(ftruncate(path, 0)); P(fcntl(path, F_SETFL, 0)); P(flock(path, LOCK_SH));
    struct stat s; P(fstat(path, &s)); P(fchdir(path)); P(fcntl(path, F_DUPFD, 50)); P(fchown(path, 0, 0)); P(futimens(path, NULL));
    P(getdents64(path, buf, 100)); P(fgetxattr(path, "user.x", buf, 1)); P(fallocate(path, 0, 0, 1)); P(readahead(path, 0, 1));
    struct rlimit small = {20, 1024}; P(setrlimit(RLIMIT_NOFILE, &small));
    int last = -1; for (int n; (n = dup(fd)) >= 0;) last = n;
    P(last); P(open("f", O_RDONLY)); P(dup2(fd, 20)); P(fcntl(fd, F_DUPFD, 20)); P(fcntl(fd, F_DUPFD, 19));
}

static void reading(void) {
    put("f", "0123456789");
    int fd = FD(open("f", O_RDWR)), ro = FD(open("f", O_RDONLY)), wo = FD(open("f", O_WRONLY)), dir = FD(open(".", O_RDONLY));
    RD(fd, 4); RD(fd, 100); RD(fd, 1); RD(fd, 0); P(read(wo, buf, 1)); P(write(ro, buf, 1)); P(read(dir, buf, 10)); P(read(dir, buf, 0));
    P(write(dir, buf, 1)); P(read(fd, (void *)1, 1)); P(lseek(fd, 0, SEEK_SET)); P(read(fd, (void *)1, 4)); P(write(fd, (void *)1, 4));
    P(read(fd, (void *)-1L, 4)); P(write(fd, (void *)-1L, 0)); P(read(77, buf, 1));
    P(pread(fd, buf, 3, 8)); P(pread(fd, buf, 3, -1)); P(pread(fd, buf, 3, 100)); P(pwrite(fd, "ab", 2, 15)); P(pread(fd, buf, 20, 8));
    P(lseek(fd, -1, SEEK_SET)); P(lseek(fd, 5, SEEK_END)); P(lseek(fd, -100, SEEK_CUR)); P(lseek(fd, 0, 9)); P(lseek(fd, LONG_MAX, SEEK_CUR));
    P(lseek(fd, 0, SEEK_DATA)); P(lseek(fd, 0, SEEK_HOLE)); P(lseek(fd, 17, SEEK_DATA)); P(lseek(fd, -1, SEEK_HOLE));
    struct iovec v[3] = {{"xx", 2}, {NULL, 0}, {"yyy", 3}}, bad[2] = {{"zz", 2}, {(void *)1, 3}}, neg[1] = {{buf, (size_t)-1}};
    P(lseek(fd, 0, SEEK_SET)); P(writev(fd, v, 3)); P(writev(fd, bad, 2)); P(writev(fd, neg, 1)); P(writev(fd, v, 1025)); P(writev(fd, v, -1));
    P(writev(fd, NULL, 0)); P(readv(fd, (void *)1, 1)); P(lseek(fd, 0, SEEK_SET)); RD(fd, 50);
    struct iovec r[2] = {{buf, 2}, {buf + 100, 3}}; P(preadv(fd, r, 2, 1)); printf("    %.2s %.3s\n", buf, buf + 100);
    P(preadv2(fd, r, 2, -1, 0)); P(lseek(fd, 2, SEEK_SET)); P(preadv2(fd, r, 2, -1, 0)); P(lseek(fd, 0, SEEK_CUR)); P(pwritev2(fd, v, 1, 0, 0x80000000));
    int ap = FD(open("f", O_WRONLY | O_APPEND)); P(write(ap, "END", 3)); P(lseek(ap, 0, SEEK_CUR)); P(pwrite(ap, "!", 1, 0)); P(lseek(fd, 10, SEEK_SET)); RD(fd, 100);
    int p[2]; P(pipe(p)); P(pread(p[0], buf, 1, 0)); P(pwrite(p[1], buf, 1, 0)); P(lseek(p[0], 0, SEEK_SET)); P(read(p[1], buf, 1)); P(write(p[0], buf, 1));
    P(fcntl(p[0], F_SETFL, O_NONBLOCK)); P(read(p[0], buf, 1)); P(read(p[0], buf, 0)); signal(SIGPIPE, SIG_IGN); close(p[0]); P(write(p[1], "x", 1)); P(write(p[1], "x", 0));
    int n = -7; P(ioctl(fd, FIONREAD, &n)); P(n); P(ioctl(dir, FIONREAD, &n)); P(ioctl(fd, 0x5401, buf)); P(ioctl(fd, FIOCLEX)); P(fcntl(fd, F_GETFD)); P(isatty(fd));
    n = 1; P(ioctl(fd, FIONBIO, &n)); P(fcntl(fd, F_GETFL));
    P(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED)); P(posix_fadvise(fd, 0, 0, 99)); P(posix_fadvise(p[1], 0, 0, 0)); P(readahead(fd, 0, 10)); P(readahead(wo, 0, 10));
    P(sync_file_range(fd, 0, 0, 99)); P(fsync(fd)); P(fdatasync(dir)); P(fsync(p[1])); P(syncfs(fd)); P(syncfs(-1));
}

static sigjmp_buf back;
static void on_fault(int s) { siglongjmp(back, s); }

static void sizes(void) {
    int fd = FD(open("f", O_CREAT | O_RDWR, 0644)), ro = FD(open("f", O_RDONLY));
    P(ftruncate(fd, 10000)); ST("f"); P(ftruncate(ro, 1)); P(ftruncate(fd, -1)); P(truncate("f", -1)); P(truncate(".", 1)); P(truncate("none", 1)); P(truncate("", 0));
    P(pwrite(fd, "data", 4, 100000)); ST("f"); P(lseek(fd, 0, SEEK_DATA)); P(lseek(fd, 98304, SEEK_HOLE)); P(lseek(fd, 5, SEEK_HOLE));
    P(fallocate(fd, 0, 0, 8192)); ST("f"); P(fallocate(fd, FALLOC_FL_KEEP_SIZE, 200000, 4096)); ST("f"); P(fallocate(fd, 0, 150000, 10)); ST("f");
    P(pwrite(fd, memset(buf, 'A', 20000), 20000, 0)); P(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1000, 10000)); ST("f");
    P(pread(fd, buf, 20000, 0)); P(buf[999] == 'A' && buf[1000] == 0 && buf[10999] == 0 && buf[11000] == 'A');
    P(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10)); P(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096)); P(fallocate(fd, 0, 0, 0)); P(fallocate(fd, 0, -1, 5)); P(fallocate(ro, 0, 0, 5));
    P(fallocate(fd, 0, LONG_MAX, 1)); int p[2]; P(pipe(p)); P(fallocate(p[1], 0, 0, 1)); int d = open(".", O_RDONLY); P(fallocate(d, 0, 0, 1)); P(ftruncate(d, 0)); P(ftruncate(p[1], 0));
    P(pwrite(fd, "x", 1, LONG_MAX)); P(pwrite(fd, "xy", 2, LONG_MAX - 1)); P(ftruncate(fd, 5)); ST("f"); P(ftruncate(fd, 4096)); P(pread(fd, buf, 10, 0)); P(buf[4] == 'A' && buf[5] == 0);
    char *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0); P(m != MAP_FAILED);
    m[1] = 'M'; P(pread(fd, buf, 3, 0)); printf("    %.3s\n", buf); P(pwrite(fd, "W", 1, 2)); printf("    %.3s\n", m);
    signal(SIGBUS, on_fault); int s = sigsetjmp(back, 1); if (!s) { m[4096] = 1; puts("no fault"); } else printf("    SIG%s\n", sigabbrev_np(s));
    P(ftruncate(fd, 0)); s = sigsetjmp(back, 1); if (!s) { m[0] = 1; puts("no fault"); } else printf("    SIG%s\n", sigabbrev_np(s));
    P(ftruncate(fd, 8192)); P(m[1]); P(read(fd, m + 4096, 4096)); P(munmap(m, 8192));
    P(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED); P(mmap(NULL, 4096, PROT_READ, MAP_SHARED, d, 0) == MAP_FAILED);
}

static int exceed_size(void) {
    struct rlimit limit = {100, 200}; setrlimit(RLIMIT_FSIZE, &limit);
    int fd = open("limited", O_CREAT | O_RDWR, 0644);
    memset(buf, 'x', 150); P(write(fd, buf, 150)); signal(SIGXFSZ, SIG_IGN); P(write(fd, buf, 1)); P(ftruncate(fd, 101)); P(ftruncate(fd, 100)); P(fallocate(fd, 0, 0, 101));
    P(pwrite(fd, buf, 50, 80)); P(truncate("limited", 500)); signal(SIGXFSZ, SIG_DFL); fflush(stdout); write(fd, buf, 1);
    return 0;
}
static int pipe_signal(void) { int p[2]; if (pipe(p)) return 1; close(p[0]); write(p[1], "x", 1); return 0; }
static void limits(void) { in_child(exceed_size); ST("limited"); in_child(pipe_signal); }

static void modes(void) {
    put("f", "x"); P(chmod("f", 06755)); ST("f"); P(chown("f", 5, 6)); ST("f"); P(chmod("f", 07777)); P(chmod("f", 02745)); P(chown("f", -1, -1)); ST("f");
    P(mkdir("d", 01777)); ST("d"); P(chmod("d", 02775)); P(chown("d", 7, 8)); P(mkdir("d/e", 0755)); ST("d/e"); put("d/f", ""); ST("d/f"); P(symlink("f", "l")); P(lchown("l", 9, 9)); ST("l");
    P(fchmodat(AT_FDCWD, "l", 0600, AT_SYMLINK_NOFOLLOW)); P(syscall(SYS_fchmodat2, AT_FDCWD, "f", 0640, 0)); P(syscall(SYS_fchmodat2, AT_FDCWD, "l", 0640, AT_SYMLINK_NOFOLLOW)); P(syscall(SYS_fchmodat2, AT_FDCWD, "f", 0640, 8)); ST("f");
    P(chmod("none", 0)); P(chmod("f/x", 0)); P(chmod("", 0)); P(chown("none", 0, 0)); P(fchownat(AT_FDCWD, "", 1, 1, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)); P(fchownat(AT_FDCWD, "f", 1, 1, 1));
    P(umask(077)); P(umask(0)); P(umask(01777)); P(umask(022)); P(mknod("fifo", S_IFIFO | 0666, 0)); ST("fifo"); P(mknod("null", S_IFCHR | 0666, 0x103)); ST("null"); P(mknod("sock", S_IFSOCK | 0600, 0)); ST("sock");
    P(mknod("reg", 0600, 0)); P(mknod("dir", S_IFDIR | 0600, 0)); P(mknod("odd", 0170000, 0)); P(mknod("f", S_IFREG, 0)); FD(open("sock", O_RDWR)); FD(open("null", O_RDWR)); FD(open("fifo", O_WRONLY | O_NONBLOCK)); FD(open("sock", O_PATH));
    P(access("f", R_OK | W_OK)); P(access("f", X_OK)); P(access("f", 9)); P(access("none", F_OK)); P(access("f", F_OK)); P(faccessat(AT_FDCWD, "l", F_OK, AT_SYMLINK_NOFOLLOW)); P(syscall(SYS_faccessat2, AT_FDCWD, "f", 0, 4));
    struct statfs fs; P(statfs("f", &fs)); P(fs.f_type); P(fs.f_bsize); P(fs.f_namelen); P(statfs("none", &fs)); P(fstatfs(-1, &fs));
    struct timespec t[2] = {{100, 5}, {200, 6}}; struct stat s; P(utimensat(AT_FDCWD, "f", t, 0)); P(stat("f", &s)); P(s.st_atim.tv_sec == 100 && s.st_atim.tv_nsec == 5 && s.st_mtim.tv_sec == 200 && s.st_mtim.tv_nsec == 6 && s.st_ctim.tv_sec > 1000);
    t[0].tv_nsec = UTIME_OMIT; t[1].tv_nsec = UTIME_NOW; P(utimensat(AT_FDCWD, "f", t, 0)); P(stat("f", &s)); P(s.st_atim.tv_sec == 100 && s.st_mtim.tv_sec > 1000); t[0].tv_nsec = 1000000000; P(utimensat(AT_FDCWD, "f", t, 0)); t[0].tv_nsec = t[1].tv_nsec = UTIME_OMIT; P(utimensat(AT_FDCWD, "none", t, 0));
    t[0].tv_nsec = 1; P(utimensat(AT_FDCWD, "l", t, AT_SYMLINK_NOFOLLOW)); P(utimensat(AT_FDCWD, "f", NULL, 0)); P(utimensat(AT_FDCWD, NULL, t, 0)); P(utimensat(-1, "f", t, 0)); P(utimensat(AT_FDCWD, "f", t, 1));
    struct timeval v[2] = {{50, 7}, {60, 8}}; P(utimes("f", v)); P(stat("f", &s)); P(s.st_atim.tv_nsec); v[0].tv_usec = -1; P(utimes("f", v)); struct utimbuf u = {1, 2}; P(utime("f", &u)); P(stat("f", &s)); P(s.st_mtime); P(utime("none", NULL)); P(futimesat(AT_FDCWD, "f", NULL));
    struct statx x; P(statx(AT_FDCWD, "f", 0, STATX_ALL, &x)); P(x.stx_mode); P(x.stx_size); P((x.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS); P(statx(AT_FDCWD, "", AT_EMPTY_PATH, STATX_ALL, &x)); P(statx(AT_FDCWD, "f", 0x80000000, 0, &x)); P(statx(AT_FDCWD, "f", 0, 0x80000000, &x));
    P(fstatat(AT_FDCWD, "", &s, 0)); P(fstatat(AT_FDCWD, "", &s, AT_EMPTY_PATH)); P(fstatat(0x7fffffff, "f", &s, 0)); P(fstatat(0, "f", &s, 0) == -1 && errno == ENOTDIR); P(fstatat(AT_FDCWD, "f", &s, 0x20000)); P(stat((char *)1, &s)); P(stat("f", (void *)1)); P(stat("", &s));
    memset(buf, 'a', 5000); buf[5000] = 0; P(stat(buf, &s)); buf[256] = 0; P(stat(buf, &s)); buf[255] = 0; P(stat(buf, &s)); P(mkdir(buf, 0700)); P(rmdir(buf));
}

static int cmp(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
static void list(const char *path) {
    DIR *d = opendir(path); if (!d) { P(-1); return; }
    char *names[1000]; int n = 0; for (struct dirent *e; (e = readdir(d));) { char *s; if (asprintf(&s, "%s:%d", e->d_name, e->d_type) < 0) return; names[n++] = s; }
    qsort(names, n, sizeof *names, cmp); printf("    "); for (int i = 0; i < n; i++) printf("%s ", names[i]); puts(""); closedir(d);
}
static int jail(void) {
    P(chroot("jail")); P(chdir("/")); list("/"); P(chdir("..")); P(chdir("/../../..")); char c[100]; P(getcwd(c, 100) != NULL); puts(c); P(symlink("/inside", "abs")); put("inside", "hello"); FD(open("abs", O_RDONLY)); P(chroot("none")); P(chroot("inside"));
    return 0;
}
static void directories(void) {
    P(mkdir("d", 0755)); put("d/a", ""); P(symlink("a", "d/l")); P(mkdir("d/s", 0700)); P(mkfifo("d/p", 0600)); list("d"); P(rmdir("d")); P(rmdir("d/.")); P(rmdir("d/s/..")); P(unlink("d")); P(unlink("d/a/")); P(rmdir("d/a"));
    int fd = FD(open("d", O_RDONLY | O_DIRECTORY)); P(getdents64(fd, buf, 10)); P(getdents64(fd, (void *)1, 1000)); P(getdents64(fd, buf, 24)); long r = getdents64(fd, buf, 4096); P(r > 0); P(getdents64(fd, buf, 4096)); P(lseek(fd, 0, SEEK_SET)); r = getdents64(fd, buf, 4096); P(r > 24); P(lseek(fd, -5, SEEK_SET)); P(getdents64(0, buf, 100));
    char c[PATH_MAX], small[2]; P(fchdir(fd)); P(getcwd(c, sizeof c) != NULL); puts(strrchr(c, '/')); P(syscall(SYS_getcwd, small, 2)); P(syscall(SYS_getcwd, (void *)1, 4096)); P(chdir("..")); P(chdir("none")); P(chdir("d/a")); P(fchdir(-1)); P(chdir(""));
    P(mkdir("gone", 0755)); P(chdir("gone")); P(rmdir("../gone")); P(syscall(SYS_getcwd, c, sizeof c)); P(mkdir("x", 0755)); FD(open("x", O_CREAT | O_RDWR, 0644)); P(stat(".", &(struct stat){0})); P(chdir("..") == 0); int dd = open(".", O_RDONLY); P(getdents64(dd, buf, 1000)); P(fchdir(fd)); P(chdir("..")); list(".");
    P(mkdir("jail", 0755)); in_child(jail); P(mkdir("d", 0755)); P(mkdir("d/", 0755)); P(mkdir("n/", 0755)); P(mkdir("none/x", 0755)); P(mkdir("d/a/x", 0755)); P(mkdir("", 0)); P(mkdir("/", 0)); P(rmdir("/")); P(unlink("/")); P(rename("/", "x")); P(rename("d", "/"));
    P(rename("d", "d/s/x")); P(rename("d/s", "d")); P(rename("d/a", "d/s")); P(rename("d/s", "d/a")); P(rename("none", "x")); P(rename("d/.", "x")); P(rename("d/a", "d/l/")); P(rename("d/a", "b/")); P(link("d", "dl")); P(link("d/a", "al")); P(link("d/a", "al")); P(linkat(AT_FDCWD, "d/l", AT_FDCWD, "ll", AT_SYMLINK_FOLLOW)); ST("ll"); P(linkat(AT_FDCWD, "d/l", AT_FDCWD, "l2", 0)); ST("l2"); P(linkat(AT_FDCWD, "d/l", AT_FDCWD, "l3", 77));
    P(symlink("", "e")); P(symlink("x", "al")); P(symlink("loop2", "loop1")); P(symlink("loop1", "loop2")); FD(open("loop1", O_RDONLY)); FD(open("loop1", O_RDONLY | O_NOFOLLOW)); FD(open("loop1", O_PATH | O_NOFOLLOW)); P(readlink("loop1", buf, 100)); P(readlink("loop1", buf, 3)); P(readlink("loop1", buf, 0)); P(readlink("d", buf, 10)); P(readlink("none", buf, 10)); P(readlinkat(AT_FDCWD, "", buf, 10));
    int l = open("loop1", O_PATH | O_NOFOLLOW); P(readlinkat(l, "", buf, 100)); ST("loop1"); P(fstatat(l, "", &(struct stat){0}, AT_EMPTY_PATH)); P(renameat2(AT_FDCWD, "al", AT_FDCWD, "ll", RENAME_EXCHANGE)); P(renameat2(AT_FDCWD, "al", AT_FDCWD, "ll", 64)); P(renameat2(AT_FDCWD, "al", AT_FDCWD, "wh", RENAME_WHITEOUT)); ST("al"); P(unlinkat(AT_FDCWD, "d", 0)); P(unlinkat(AT_FDCWD, "n", AT_REMOVEDIR)); P(unlinkat(AT_FDCWD, "d", 77)); list(".");
}

static int resolve(int dir, const char *path, unsigned long flags, unsigned long how) {
    struct open_how h = {.flags = flags, .resolve = how};
    return syscall(SYS_openat2, dir, path, &h, sizeof h);
}
static void opening(void) {
    mkdir("d", 0755); put("d/f", "x"); symlink("f", "d/l"); symlink("..", "d/up"); symlink("/", "d/abs"); symlink("../d/f", "d/round"); int d = open("d", O_PATH | O_DIRECTORY);
    FD(resolve(d, "f", 0, 0)); FD(resolve(d, "l", 0, RESOLVE_NO_SYMLINKS)); FD(resolve(d, "../d/f", 0, RESOLVE_BENEATH)); FD(resolve(d, "round", 0, RESOLVE_BENEATH)); FD(resolve(d, "/", 0, RESOLVE_BENEATH)); FD(resolve(d, "abs", 0, RESOLVE_BENEATH)); FD(resolve(d, "abs/f", 0, RESOLVE_IN_ROOT)); FD(resolve(d, "/f", 0, RESOLVE_IN_ROOT)); FD(resolve(d, "up/f", 0, RESOLVE_IN_ROOT)); FD(resolve(d, "round", 0, RESOLVE_IN_ROOT)); FD(resolve(d, "l", 0, RESOLVE_BENEATH)); FD(resolve(d, "up", 0, RESOLVE_BENEATH)); FD(resolve(d, "abs", 0, RESOLVE_NO_XDEV)); FD(resolve(AT_FDCWD, "/proc/self/fd/0", O_PATH, RESOLVE_NO_MAGICLINKS)); FD(resolve(d, "f", 0, RESOLVE_BENEATH | RESOLVE_IN_ROOT)); FD(resolve(d, "f", 0, 1 << 20)); FD(resolve(d, "f", 1ul << 40, 0)); FD(resolve(d, "f", O_PATH | O_RDWR, 0));
    struct open_how h[2] = {{.mode = 0644}}; P(syscall(SYS_openat2, d, "f", h, sizeof *h)); h[0].mode = 0; P(syscall(SYS_openat2, d, "f", h, 8)); h[1].flags = 1; P(syscall(SYS_openat2, d, "f", h, sizeof h)); P(syscall(SYS_openat2, d, "f", h, 100000)); P(syscall(SYS_openat2, d, "f", 1, 24));
    FD(open("d", O_RDWR)); FD(open("d", O_CREAT, 0644)); FD(open("d/", O_CREAT, 0644)); FD(open("new/", O_CREAT, 0644)); FD(open("d/f", O_CREAT | O_EXCL, 0644)); FD(open("d/l", O_CREAT | O_EXCL, 0644)); FD(open("d/f/", O_RDONLY)); FD(open("d/f", O_DIRECTORY)); FD(open("d/l", O_NOFOLLOW)); FD(open("d/f", O_CREAT | O_DIRECTORY, 0644)); FD(open("nope/f", O_CREAT, 0644)); symlink("made", "dangling"); FD(open("dangling", O_CREAT | O_WRONLY, 0600)); ST("made");
    int three = FD(open("d/f", 3)); P(read(three, buf, 1)); P(write(three, buf, 1)); P(fcntl(three, F_GETFL)); FD(open(".", O_TMPFILE)); int t = FD(open(".", O_TMPFILE | O_RDWR, 0600)); P(write(t, "tmp", 3)); char p[64]; sprintf(p, "/proc/self/fd/%d", t); P(linkat(AT_FDCWD, p, AT_FDCWD, "named", AT_SYMLINK_FOLLOW)); ST("named"); P(linkat(t, "", AT_FDCWD, "named2", AT_EMPTY_PATH)); ST("named2"); int te = FD(open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600)); P(linkat(te, "", AT_FDCWD, "named3", AT_EMPTY_PATH)); FD(open("d/f", O_TMPFILE | O_RDWR, 0600)); P(fcntl(t, F_GETFL));
    FD(open("/proc/self/exe", O_WRONLY)); FD(open("/proc/self/exe", O_RDONLY)); P(truncate("/proc/self/exe", 0)); int fd = open("d/f", O_RDONLY); sprintf(p, "/proc/self/fd/%d", fd); int again = FD(open(p, O_RDWR)); P(write(again, "Y", 1)); P(unlink("d/f")); again = FD(open(p, O_RDONLY)); RD(again, 5); long n = readlink(p, buf, 1000); printf("    ...%.*s\n", 12, buf + n - 12); P(fstat(fd, &(struct stat){0}));
    put("tr", "123456"); FD(open("tr", O_RDONLY | O_TRUNC)); ST("tr"); put("w", "x"); chmod("w", 0111); FD(open("w", O_RDONLY)); FD(creat("c", 0640)); ST("c"); FD(creat("d", 0640)); FD(open("", O_RDONLY)); FD(open((char *)1, O_RDONLY)); FD(openat(-1, "x", O_RDONLY)); FD(openat(fd, "x", O_RDONLY)); FD(openat(-1, "/", O_RDONLY)); FD(open("w", O_RDONLY | O_NOATIME)); FD(open("w", 0x8000000));
    int e = open("tr", O_RDONLY); int x = FD(open("tr", O_RDWR | O_EXCL)); P(close(x)); P(close(e));
}

static void fifos(void) {
    P(mkfifo("p", 0644)); FD(open("p", O_WRONLY | O_NONBLOCK)); int r = FD(open("p", O_RDONLY | O_NONBLOCK)), w = FD(open("p", O_WRONLY)); P(write(w, "hi", 2)); RD(r, 10); P(read(r, buf, 1)); P(close(w)); P(read(r, buf, 1)); P(close(r)); int rw = FD(open("p", O_RDWR)); P(write(rw, "x", 1)); RD(rw, 5); P(close(rw));
    fflush(stdout); if (fork() == 0) { int f = open("p", O_WRONLY); write(f, "from child", 10); _exit(0); } r = FD(open("p", O_RDONLY)); RD(r, 100); wait(NULL); P(read(r, buf, 1)); ST("p"); P(truncate("p", 0)); FD(open("p", O_RDONLY | O_NONBLOCK | O_TRUNC)); FD(open("p", O_DIRECTORY));
    int a[2], b[2]; P(pipe(a)); P(pipe2(b, O_NONBLOCK)); put("f", "0123456789"); int f = open("f", O_RDWR); loff_t off = 3; P(splice(f, &off, a[1], NULL, 4, 0)); P(off); P(tee(a[0], b[1], 100, 0)); RD(b[0], 100); P(splice(a[0], NULL, b[1], NULL, 2, 0)); RD(b[0], 100); off = 20; P(splice(a[0], NULL, f, &off, 100, 0)); P(off); ST("f"); P(splice(a[0], NULL, f, NULL, 10, SPLICE_F_NONBLOCK)); P(splice(f, NULL, f, NULL, 1, 0)); P(splice(a[0], &off, f, NULL, 1, 0)); P(tee(f, a[1], 1, 0)); P(tee(a[0], a[1], 1, SPLICE_F_NONBLOCK)); P(splice(a[0], NULL, a[1], NULL, 1, 99)); P(splice(a[1], NULL, f, NULL, 1, 0)); struct iovec v = {"vm", 2}; P(vmsplice(a[1], &v, 1, 0)); RD(a[0], 10); P(vmsplice(f, &v, 1, 0));
    P(lseek(f, 0, SEEK_SET)); P(sendfile(a[1], f, NULL, 5)); P(lseek(f, 0, SEEK_CUR)); off = 2; P(sendfile(a[1], f, &off, 100)); P(off); RD(a[0], 100); P(sendfile(a[1], a[0], NULL, 1)); P(sendfile(f, f, NULL, -1)); P(sendfile(-1, f, NULL, 1)); off = -1; P(sendfile(a[1], f, &off, 1)); int g = open("g", O_CREAT | O_RDWR, 0644), ap = open("g", O_APPEND | O_WRONLY); P(sendfile(ap, f, NULL, 1)); off = 0; P(sendfile(g, f, &off, 1000)); ST("g");
    loff_t i = 0, o = 100; P(copy_file_range(f, &i, g, &o, 1000, 0)); P(i); P(o); ST("g"); i = 0; o = 5; P(copy_file_range(f, &i, f, &o, 10, 0)); P(copy_file_range(f, &i, ap, NULL, 10, 0)); P(copy_file_range(f, &i, g, NULL, 10, 1)); P(copy_file_range(a[0], NULL, g, NULL, 10, 0)); int d = open(".", O_RDONLY); P(copy_file_range(d, NULL, g, NULL, 10, 0)); i = 1000; P(copy_file_range(f, &i, g, &o, 10, 0));
}

static int lock(int fd, int cmd, int type, long start, long len) { struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len}; int r = fcntl(fd, cmd, &l); if (r == 0 && (cmd == F_GETLK || cmd == F_OFD_GETLK)) printf("    type %d start %ld len %ld pid %s\n", l.l_type, (long)l.l_start, (long)l.l_len, l.l_pid == getppid() ? "parent" : l.l_pid == -1 ? "-1" : "other"); return r; }
static int locked_fd; static int fds[2], fds2[2];
static int lock_child(void) {
    int fd = open("f", O_RDWR); P(lock(fd, F_GETLK, F_WRLCK, 0, 0)); P(lock(fd, F_GETLK, F_RDLCK, 30, 5)); P(lock(fd, F_SETLK, F_WRLCK, 5, 1)); P(lock(fd, F_SETLK, F_RDLCK, 30, 1)); P(lock(fd, F_SETLK, F_WRLCK, 30, 1)); P(lock(fd, F_SETLK, F_WRLCK, 100, 10)); P(lock(fd, F_OFD_SETLK, F_WRLCK, 100, 10)); P(lock(fd, F_OFD_SETLK, F_WRLCK, 200, 10)); P(lock(fd, F_OFD_GETLK, F_WRLCK, 0, 10)); P(flock(fd, LOCK_SH | LOCK_NB)); P(flock(locked_fd, LOCK_SH | LOCK_NB)); P(lock(fd, F_GETLK, F_UNLCK, 0, 0)); return 0;
}
static int deadlock_child(void) { int fd = open("f", O_RDWR); lock(fd, F_SETLKW, F_WRLCK, 60, 1); write(fds[1], "x", 1); int r = lock(fd, F_SETLKW, F_WRLCK, 50, 1); return r == 0 ? 1 : errno == EDEADLK ? 2 : 3; }
static void on_alarm(int s) { (void)s; }
static void locks(void) {
    put("f", "0123456789"); int fd = locked_fd = open("f", O_RDWR), ro = open("f", O_RDONLY);
    P(lock(fd, F_SETLK, F_WRLCK, 0, 10)); P(lock(fd, F_SETLK, F_RDLCK, 30, 10)); P(lock(fd, F_SETLK, F_UNLCK, 4, 2)); P(lock(ro, F_SETLK, F_WRLCK, 0, 1)); P(lock(fd, F_SETLK, 99, 0, 1)); P(lock(fd, F_SETLK, F_WRLCK, -1, 1)); P(lock(fd, F_SETLK, F_WRLCK, 10, -5)); P(lock(fd, F_SETLK, F_WRLCK, 3, -5)); struct flock e = {.l_type = F_WRLCK, .l_whence = SEEK_END, .l_start = -2, .l_len = 5}; P(fcntl(fd, F_SETLK, &e)); e.l_whence = 7; P(fcntl(fd, F_SETLK, &e)); P(fcntl(fd, F_SETLK, 1)); e.l_whence = 0; e.l_pid = 5; P(fcntl(fd, F_OFD_SETLK, &e)); P(flock(fd, LOCK_EX)); P(flock(fd, LOCK_EX)); P(flock(ro, LOCK_SH | LOCK_NB)); P(flock(fd, 99)); P(flock(-1, LOCK_SH)); in_child(lock_child);
    P(close(ro)); P(lock(fd, F_OFD_SETLK, F_WRLCK, 0, 10)); P(flock(fd, LOCK_UN)); int other = open("f", O_RDWR); P(lock(other, F_OFD_SETLK, F_RDLCK, 0, 1)); P(lock(other, F_SETLK, F_RDLCK, 0, 1)); P(close(fd)); P(lock(other, F_OFD_SETLK, F_RDLCK, 0, 1)); P(pipe(fds)); P(pipe(fds2));
    P(lock(other, F_SETLK, F_WRLCK, 50, 1)); fflush(stdout); pid_t c = fork(); if (c == 0) _exit(deadlock_child()); read(fds[0], buf, 1); usleep(100000); int r = lock(other, F_SETLKW, F_WRLCK, 60, 1); printf("    parent %d\n", r); lock(other, F_SETLK, F_UNLCK, 0, 0); int st; waitpid(c, &st, 0); printf("    child %d\n", WEXITSTATUS(st));
    c = fork(); if (c == 0) { int f = open("f", O_RDWR); lock(f, F_SETLK, F_WRLCK, 70, 1); flock(f, LOCK_EX); write(fds2[1], "x", 1); usleep(200000); _exit(0); } read(fds2[0], buf, 1); P(lock(other, F_SETLKW, F_WRLCK, 70, 1)); P(flock(other, LOCK_EX)); waitpid(c, &st, 0);
    c = fork(); if (c == 0) { struct sigaction a = {.sa_handler = on_alarm}; sigaction(SIGALRM, &a, NULL); struct itimerval t = {{0}, {0, 50000}}; setitimer(ITIMER_REAL, &t, NULL); int f = open("f", O_RDWR); r = lock(f, F_SETLKW, F_WRLCK, 70, 1); printf("    interrupted %d %s\n", r, strerrorname_np(errno)); setitimer(ITIMER_REAL, &t, NULL); r = flock(f, LOCK_EX); printf("    interrupted %d %s\n", r, strerrorname_np(errno)); fflush(stdout); _exit(0); } waitpid(c, &st, 0);
}

static void drain(int in) {
    for (;;) { long n = read(in, buf, sizeof buf); if (n <= 0) { printf("    end %s\n", strerrorname_np(errno)); errno = 0; return; }
        for (long at = 0; at < n;) { struct inotify_event *e = (void *)(buf + at); printf("    wd %d mask %x cookie %d len %d %s\n", e->wd, e->mask, e->cookie != 0, e->len, e->len ? e->name : "-"); at += sizeof *e + e->len; } }
}
static void watching(void) {
    int in = FD(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)); P(inotify_init1(77)); mkdir("d", 0755); P(inotify_add_watch(in, "d", IN_ALL_EVENTS)); P(inotify_add_watch(in, "none", IN_ALL_EVENTS)); P(inotify_add_watch(in, "d", 0)); P(inotify_add_watch(0, "d", 1)); P(inotify_add_watch(in, "d", IN_ALL_EVENTS | IN_MASK_CREATE)); drain(in);
    int fd = open("d/f", O_CREAT | O_RDWR, 0644); write(fd, "x", 1); write(fd, "x", 1); pread(fd, buf, 1, 0); close(fd); drain(in); chmod("d/f", 0600); truncate("d/f", 0); open("d/f", O_WRONLY | O_TRUNC); drain(in); P(inotify_add_watch(in, "d/f", IN_ALL_EVENTS)); rename("d/f", "d/g"); drain(in); link("d/g", "d/h"); drain(in); unlink("d/g"); drain(in); unlink("d/h"); drain(in); mkdir("d/s", 0755); list("d"); drain(in); rename("d/s", "s"); drain(in); symlink("x", "d/l"); readlink("d/l", buf, 10); unlink("d/l"); drain(in);
    put("w", "1"); int w = P(inotify_add_watch(in, "w", IN_ALL_EVENTS | IN_ONESHOT)); put("w", "2"); drain(in); P(inotify_rm_watch(in, w)); P(inotify_add_watch(in, "w", IN_MODIFY)); P(inotify_add_watch(in, "w", IN_OPEN | IN_MASK_ADD)); put("w", "3"); drain(in); P(inotify_add_watch(in, "w", IN_ONLYDIR | IN_OPEN)); rename("w", "d/w"); unlink("d/w"); drain(in); mkdir("d/sub", 0755); P(inotify_add_watch(in, "d/sub", IN_ALL_EVENTS)); rmdir("d/sub"); drain(in); rmdir("d"); drain(in); P(inotify_rm_watch(in, 1)); int n; P(ioctl(in, FIONREAD, &n)); P(n); P(read(in, buf, 4)); P(write(in, "x", 1)); P(lseek(in, 0, SEEK_SET));
}

static void memory_files(void) {
    int fd = FD(memfd_create("name", MFD_ALLOW_SEALING)); struct stat s; P(fstat(fd, &s)); P(s.st_mode); P(s.st_nlink); P(s.st_size); P(fcntl(fd, F_GETFL)); P(fcntl(fd, F_GETFD)); char p[64]; sprintf(p, "/proc/self/fd/%d", fd); long n = readlink(p, buf, 100); printf("    %.*s\n", (int)n, buf); P(write(fd, "hello", 5)); P(fcntl(fd, F_GET_SEALS)); P(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)); P(ftruncate(fd, 1)); P(ftruncate(fd, 10)); P(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)); P(ftruncate(fd, 20)); P(pwrite(fd, "xyz", 3, 8)); P(pwrite(fd, "x", 1, 10)); P(fallocate(fd, 0, 0, 30)); P(fcntl(fd, F_ADD_SEALS, 0x1000)); int r = FD(open(p, O_RDONLY)); P(fcntl(r, F_ADD_SEALS, F_SEAL_WRITE)); P(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)); P(write(fd, "x", 1)); P(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 5)); P(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL)); P(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)); P(fcntl(fd, F_GET_SEALS)); RD(r, 20);
    int plain = FD(memfd_create("", MFD_CLOEXEC)); P(fcntl(plain, F_GETFD)); P(fcntl(plain, F_GET_SEALS)); P(fcntl(plain, F_ADD_SEALS, F_SEAL_GROW)); P(memfd_create("x", 0x80000000)); memset(buf, 'n', 300); buf[250] = 0; P(memfd_create(buf, 0)); buf[249] = 0; FD(memfd_create(buf, 0)); P(memfd_create((char *)1, 0)); int nx = FD(memfd_create("nx", MFD_NOEXEC_SEAL)); P(fstat(nx, &s)); P(s.st_mode); P(fcntl(nx, F_GET_SEALS)); P(fchmod(nx, 0777));
}

static void attributes(void) {
    put("f", "x"); mkdir("d", 0755); symlink("f", "l"); P(setxattr("f", "trusted.a", "value", 5, 0)); P(getxattr("f", "trusted.a", buf, 100)); P(getxattr("f", "trusted.a", buf, 2)); P(getxattr("f", "trusted.a", NULL, 0)); P(setxattr("f", "trusted.a", "v", 1, XATTR_CREATE)); P(setxattr("f", "trusted.b", "v", 1, XATTR_REPLACE)); P(setxattr("f", "trusted.a", "v", 1, 7)); P(setxattr("f", "", "v", 1, 0)); P(setxattr("f", "nonsense", "v", 1, 0)); P(setxattr("f", "what.ever", "v", 1, 0)); P(getxattr("f", "trusted.none", buf, 10)); P(listxattr("f", buf, 100)); P(listxattr("f", buf, 3)); P(listxattr("f", NULL, 0)); P(removexattr("f", "trusted.a")); P(removexattr("f", "trusted.a")); P(lsetxattr("l", "user.x", "v", 1, 0)); P(lsetxattr("l", "trusted.x", "v", 1, 0)); P(lgetxattr("l", "trusted.x", buf, 10)); P(setxattr("f", "trusted.big", buf, 65537, 0)); memset(buf, 'x', 300); memcpy(buf, "trusted.", 8); buf[256] = 0; P(setxattr("f", buf, "v", 1, 0)); buf[255] = 0; P(setxattr("f", buf, "v", 1, 0)); P(setxattr("none", "trusted.a", "v", 1, 0)); int fd = open("f", O_RDONLY); P(fsetxattr(fd, "trusted.c", "", 0, 0)); P(fgetxattr(fd, "trusted.c", buf, 10)); P(flistxattr(-1, NULL, 0));
}

static int mounting_child(void) {
    if (unshare(CLONE_NEWNS)) { puts("no namespace"); return 0; } char old[100]; P(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)); mkdir("m", 0755); mkdir("b", 0755); put("file", "plain"); put("target", "covered"); mkdir("m/under", 0755);
    P(mount("none", "m", "tmpfs", 0, "size=1m,mode=750")); ST("m"); list("m"); put("m/f", "inside"); P(mount("m", "b", NULL, MS_BIND, NULL)); list("b"); P(mount("none", "b", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL)); FD(open("b/f", O_RDWR)); FD(open("b/f", O_RDONLY)); FD(open("b/new", O_CREAT | O_RDWR, 0644)); FD(open("b/f", O_CREAT | O_RDONLY, 0644)); P(unlink("b/f")); P(mkdir("b/x", 0755)); P(mkdir("b/f", 0755)); P(chmod("b/f", 0600)); P(rename("b/f", "b/g")); P(rename("b/f", "m/g")); P(link("m/f", "b/g")); P(access("b/f", W_OK)); P(access("b/f", R_OK)); P(truncate("b/f", 0)); P(utimes("b/f", NULL)); P(symlink("x", "b/l")); P(setxattr("b/f", "trusted.x", "y", 1, 0));
    P(mount("file", "target", NULL, MS_BIND, NULL)); int t = open("target", O_RDONLY); RD(t, 10); P(umount("target")); close(t); P(umount("target")); P(umount("target")); P(mount("file", "m", NULL, MS_BIND, NULL)); P(mount("m", "target", NULL, MS_BIND, NULL)); P(mount("none", "m", "nosuchfs", 0, NULL)); P(mount("none", "none", "tmpfs", 0, NULL)); P(mount("none", "m", "tmpfs", 0, "size=banana")); P(rmdir("m")); P(rename("m", "mm")); P(unlink("target"));
    P(mount("none", "m", NULL, MS_REMOUNT | MS_BIND | MS_NOEXEC | MS_NODEV, NULL)); put("m/prog", "#!/bin/true\n"); chmod("m/prog", 0755); P(access("m/prog", X_OK)); P(execl("m/prog", "prog", NULL)); P(mknod("m/null", S_IFCHR | 0666, 0x103)); FD(open("m/null", O_RDWR)); struct statfs fs; P(statfs("m", &fs)); P(fs.f_flags & ~0x20 & ~4096); P(fs.f_blocks);
    int fd = open("m/f", O_RDONLY); P(umount("m")); P(umount2("m", MNT_DETACH)); RD(fd, 10); list("m"); list("b"); P(chdir("b")); P(umount2("../b", 0)); P(chdir("..")); P(umount2("b", 99)); P(umount("b")); mkdir("r", 0755); P(mount("none", "r", "tmpfs", 0, NULL)); mkdir("r/in", 0755); P(mount("none", "r/in", "tmpfs", 0, NULL)); put("r/in/deep", "1"); P(mount("r", "b", NULL, MS_BIND, NULL)); list("b/in"); P(umount("b")); P(mount("r", "b", NULL, MS_BIND | MS_REC, NULL)); list("b/in"); P(umount("b")); P(umount2("b", MNT_DETACH)); mkdir("mv", 0755); P(mount("r", "mv", NULL, MS_MOVE, NULL)); list("mv/in"); P(mount("mv", "mv/in", NULL, MS_MOVE, NULL)); P(mount("mv/in/deep", "b", NULL, MS_MOVE, NULL)); P(link("mv/in/deep", "mv/x")); P(rename("mv/in/deep", "mv/x"));
    mkdir("mv/old", 0755); P(syscall(SYS_pivot_root, "b", "b")); P(syscall(SYS_pivot_root, "mv", "r")); P(syscall(SYS_pivot_root, "mv", "mv/old")); P(chdir("/")); list("/"); P(umount2("/old", MNT_DETACH)); list("/old"); P(getcwd(old, 100) != NULL); puts(old);
    return 0;
}
static void mounts(void) { in_child(mounting_child); list("."); }

static const struct { const char *name; void (*run)(void); } sections[] = {
    {"descriptors", descriptors}, {"reading", reading}, {"sizes", sizes}, {"limits", limits}, {"modes", modes}, {"directories", directories}, {"opening", opening}, {"fifos", fifos}, {"locks", locks}, {"watching", watching}, {"memory_files", memory_files}, {"attributes", attributes}, {"mounts", mounts},
};
int main(int argc, char **argv) {
    if (argc < 3 || chdir(argv[1])) return 99;
    umask(022); setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) if (!strcmp(sections[i].name, argv[2])) { errno = 0; sections[i].run(); fflush(stdout); return 0; }
    return 98;
}
