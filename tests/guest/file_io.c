/* Reading, writing, seeking, holes, truncation, copying; times, modes and owners; directories; locks. */
#include "check.h"
#include <dirent.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/statvfs.h>

static void input_output(void) {
    char text[64] = "";
    int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
    struct iovec parts[3] = {{"one ", 4}, {"two ", 4}, {"three", 5}};
    TRY(writev(fd, parts, 3));
    TRY(writev(fd, parts, -1));
    TRY(writev(fd, parts, 2000));
    TRY(pwrite(fd, "TWO", 3, 4));
    TRY(lseek(fd, 0, SEEK_CUR));
    struct iovec into[2] = {{text, 3}, {text + 10, 20}};
    TRY(preadv(fd, into, 2, 0));
    printf("%s|%s\n", text, text + 10);
    TRY(pread(fd, text, 10, 100));
    TRY(pread(fd, text, 10, -1));
    TRY(lseek(fd, -100, SEEK_SET));
    TRY(lseek(fd, -3, SEEK_END));
    TRY(lseek(fd, 0, 77));
    TRY(lseek(fd, 1 << 20, SEEK_SET));
    TRY(write(fd, "end", 3));
    struct stat status;
    fstat(fd, &status);
    printf("size %ld blocks fewer %d\n", (long)status.st_size, status.st_blocks * 512 < status.st_size);
    TRY(lseek(fd, 0, SEEK_DATA));
    TRY(lseek(fd, 2 << 20, SEEK_DATA));
    TRY(pread(fd, text, 4, 5000));
    printf("hole %d%d%d%d\n", text[0], text[1], text[2], text[3]);
    TRY(ftruncate(fd, 5));
    TRY(ftruncate(fd, 20));
    TRY(pread(fd, text, 20, 0));
    printf("%.5s %d\n", text, text[5]);
    TRY(ftruncate(fd, -1));
    TRY(truncate("missing", 1));
    TRY(truncate(".", 1));
    TRY(fallocate(fd, 0, 0, 100));
    fstat(fd, &status);
    printf("size %ld\n", (long)status.st_size);
    TRY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 10000));
    TRY(fallocate(fd, 0, 0, 0));
    TRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 3));
    TRY(pread(fd, text, 5, 0));
    printf("punched %d %c\n", text[0], text[3]);
    int reading = open("f", O_RDONLY);
    TRY(write(reading, "x", 1));
    TRY(ftruncate(reading, 0));
    TRY(fallocate(reading, 0, 0, 1));
    TRY(read(fd, (void *)8, 1));
    TRY(write(fd, (void *)8, 1));
    TRY(read(fd, text, 0));
    write_file("source", "0123456789");
    int source = open("source", O_RDONLY), target = open("target", O_RDWR | O_CREAT | O_TRUNC, 0600);
    off_t offset = 2;
    TRY(sendfile(target, source, &offset, 5));
    printf("offset %ld\n", (long)offset);
    TRY(copy_file_range(source, NULL, target, NULL, 100, 0));
    show_file("target");
    TRY(sendfile(target, target, NULL, -1));
    TRY(fsync(fd));
    TRY(fdatasync(fd));
    TRY(syscall(SYS_syncfs, fd));
    TRY(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL));
    TRY(readahead(fd, 0, 4096));
    int left;
    TRY(ioctl(source, FIONREAD, &left));
    TRY(ioctl(source, 0x1234, &left));
    TRY(ioctl(source, TCGETS, &left));
}

static void attributes(void) {
    struct stat status;
    write_file("t", "x");
    TRY(chmod("t", 06755));
    stat("t", &status);
    printf("mode %o\n", status.st_mode);
    TRY(chown("t", 1000, 1001));
    stat("t", &status);
    printf("mode %o owner %d %d\n", status.st_mode, status.st_uid, status.st_gid);
    TRY(chown("t", -1, 7));
    stat("t", &status);
    printf("owner %d %d\n", status.st_uid, status.st_gid);
    struct timespec times[2] = {{1000000, 5000}, {2000000, 7000}};
    TRY(utimensat(AT_FDCWD, "t", times, 0));
    stat("t", &status);
    printf("times %ld.%ld %ld.%ld\n", status.st_atim.tv_sec, status.st_atim.tv_nsec, status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
    times[0].tv_nsec = UTIME_OMIT;
    times[1].tv_nsec = UTIME_NOW;
    TRY(utimensat(AT_FDCWD, "t", times, 0));
    stat("t", &status);
    printf("atime %ld, mtime %s\n", status.st_atim.tv_sec, status.st_mtim.tv_sec > 1700000000 ? "now" : "old");
    times[0].tv_nsec = 2000000000;
    TRY(utimensat(AT_FDCWD, "t", times, 0));
    TRY(utimensat(AT_FDCWD, "missing", NULL, 0));
    struct timespec before = status.st_mtim;
    nap(20);
    int fd = open("t", O_WRONLY);
    write(fd, "y", 1);
    fstat(fd, &status);
    printf("mtime moved %d ctime not before %d\n", status.st_mtim.tv_sec > before.tv_sec || status.st_mtim.tv_nsec != before.tv_nsec,
           status.st_ctim.tv_sec >= status.st_mtim.tv_sec);
    char *mapped = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd = open("t", O_RDWR), 0);
    mapped[0] = 'z';
    munmap(mapped, 1);
    fstat(fd, &status);
    printf("whoever wrote and mapped it, its owner is %d %d\n", status.st_uid, status.st_gid);
    symlink("t", "lt");
    TRY(lchown("lt", 5, 6));
    lstat("lt", &status);
    printf("link's owner %d, mode %o\n", status.st_uid, status.st_mode);
    TRY(fchmodat(AT_FDCWD, "lt", 0600, 0));
    TRY(chmod("missing", 0600));
    struct statx extended;
    TRY(statx(AT_FDCWD, "t", 0, STATX_BASIC_STATS, &extended));
    printf("statx %o %u size %ld\n", extended.stx_mode, extended.stx_uid, (long)extended.stx_size);
    TRY(statx(AT_FDCWD, "t", 0x80000, STATX_BASIC_STATS, &extended));
    TRY(fstatat(fd, "", &status, AT_EMPTY_PATH));
    TRY(fstatat(fd, "", &status, 0));
    TRY(faccessat(AT_FDCWD, "t", R_OK | W_OK, 0));
    TRY(access("t", 99));
    IN_CHILD("as nobody") {
        chmod(".", 0777);
        setgid(65534);
        setuid(65534);
        TRY(open("t", O_RDWR));
        TRY(chmod("t", 0777));
        TRY(chown("t", 65534, 65534));
        TRY(access("t", R_OK));
        TRY(utimensat(AT_FDCWD, "t", NULL, 0));
        write_file("own", "mine");
        TRY(chmod("own", 04755));
        TRY(chown("own", 0, 0));
        TRY(open("own", O_RDWR));
        mkdir("closed", 0000);
        TRY(open("closed/x", O_CREAT | O_RDWR, 0600));
        TRY(chdir("closed"));
        TRY(opendir("closed") ? 0 : -1);
    }
    fd = open("own", O_WRONLY);
    struct statvfs space;
    TRY(fstatvfs(fd, &space));
    printf("name length %ld\n", (long)space.f_namemax);
}

/* What one process writes, its fstat shows at once, whatever others do to the file meanwhile. */
static void sizes_under_change(void) {
    int fd = open("grows", O_RDWR | O_CREAT | O_APPEND, 0600);
    pid_t pid = fork();
    if (pid == 0) {
        for (;;) {
            fchown(fd, 0, 0);
            fchmod(fd, 0600);
        }
    }
    struct stat status;
    int stale = 0;
    for (long size = 1; size <= 1000; size++) {
        if (write(fd, "x", 1) != 1)
            printf("write: %s\n", strerrorname_np(errno));
        usleep(50);
        fstat(fd, &status);
        stale += status.st_size != size;
    }
    printf("stale sizes %d\n", stale);
    TRY(ftruncate(fd, 1));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(fd);
}

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void directories(void) {
    mkdir("many", 0755);
    char name[64];
    for (int i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "many/file-with-a-longer-name-%d", i);
        close(open(name, O_CREAT | O_WRONLY, 0600));
    }
    mkdir("many/dir", 0755);
    symlink("dir", "many/link");
    mkfifo("many/fifo", 0600);
    DIR *dir = opendir("many");
    struct dirent *entry;
    char *names[4000];
    int count = 0, kinds[16] = {0};
    while ((entry = readdir(dir))) {
        kinds[entry->d_type & 15]++;
        names[count++] = strdup(entry->d_name);
    }
    qsort(names, count, sizeof *names, compare);
    int doubles = 0;
    for (int i = 1; i < count; i++)
        doubles += strcmp(names[i - 1], names[i]) == 0;
    printf("entries %d doubles %d files %d dirs %d links %d fifos %d first %s\n", count, doubles, kinds[DT_REG], kinds[DT_DIR],
           kinds[DT_LNK], kinds[DT_FIFO], names[0]);
    rewinddir(dir);
    int half = 0;
    while (half < 1500 && readdir(dir))
        half++;
    long place = telldir(dir);
    int rest = 0;
    while (readdir(dir))
        rest++;
    seekdir(dir, place);
    int again = 0;
    while (readdir(dir))
        again++;
    printf("rest %d again %d\n", rest, again);
    /* Removing while reading loses nothing that is still there. */
    rewinddir(dir);
    int removed = 0;
    while ((entry = readdir(dir)))
        if (entry->d_type == DT_REG) {
            snprintf(name, sizeof name, "many/%.50s", entry->d_name);
            removed += unlink(name) == 0;
        }
    rewinddir(dir);
    int left = 0;
    while (readdir(dir))
        left++;
    printf("removed %d left %d\n", removed, left);
    char small[8];
    lseek(dirfd(dir), 0, SEEK_SET);
    TRY(syscall(SYS_getdents64, dirfd(dir), small, sizeof small));
    TRY(syscall(SYS_getdents64, 0, small, sizeof small));
    closedir(dir);
}

static void show_lock(const char *what, int fd, short type) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 100};
    fcntl(fd, F_GETLK, &lock);
    printf("%s: type %d start %ld length %ld\n", what, lock.l_type, (long)lock.l_start, (long)lock.l_len);
}

static long set(int fd, int command, short type, long start, long length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

static void locks(void) {
    int fd = open("locked", O_RDWR | O_CREAT, 0600);
    TRY(set(fd, F_SETLK, F_WRLCK, 10, 20));
    TRY(set(fd, F_SETLK, F_RDLCK, 15, 5));
    TRY(set(fd, F_SETLK, 9, 0, 1));
    TRY(set(fd, F_SETLK, F_WRLCK, -5, 1));
    IN_CHILD("other process") {
        show_lock("write", fd, F_WRLCK);
        TRY(set(fd, F_SETLK, F_RDLCK, 15, 5));
        TRY(set(fd, F_SETLK, F_WRLCK, 15, 5));
        TRY(set(fd, F_SETLK, F_WRLCK, 0, 10));
        TRY(set(fd, F_OFD_SETLK, F_WRLCK, 12, 1));
    }
    close(open("locked", O_RDONLY));
    IN_CHILD("gone with any close") { show_lock("write", fd, F_WRLCK); }
    set(fd, F_SETLK, F_WRLCK, 0, 0);
    long start = now_ms();
    pid_t pid = fork();
    if (pid == 0) {
        int result = set(fd, F_SETLKW, F_WRLCK, 0, 1);
        printf("waited %d %s\n", result, took(start, 40));
        _exit(0);
    }
    nap(60);
    set(fd, F_SETLK, F_UNLCK, 0, 0);
    reap("waiter", pid);
    int one = open("locked", O_RDWR), two = open("locked", O_RDWR);
    TRY(set(one, F_OFD_SETLK, F_WRLCK, 0, 10));
    TRY(set(two, F_OFD_SETLK, F_WRLCK, 0, 10));
    TRY(flock(one, LOCK_EX));
    TRY(flock(two, LOCK_SH | LOCK_NB));
    TRY(flock(one, LOCK_SH));
    TRY(flock(two, LOCK_SH | LOCK_NB));
    TRY(flock(two, 77));
    close(one);
    TRY(flock(two, LOCK_EX | LOCK_NB));
}

/* Links in a sticky directory that everybody may write to are followed as fs.protected_symlinks says. */
static void sticky_links(void) {
    char setting[8] = "";
    int fd = open("/proc/sys/fs/protected_symlinks", O_RDONLY);
    TRY(read(fd, setting, sizeof setting));
    mkdir("sticky", 0755);
    TRY(chmod("sticky", 01777));
    write_file("sticky/file", "x");
    TRY(symlink("file", "sticky/own"));
    TRY(symlink("file", "sticky/other's"));
    TRY(lchown("sticky/other's", 5, 6));
    TRY(chown("sticky/file", 5, 6));
    TRY_OK(open("sticky/own", O_RDONLY));
    int other = open("sticky/other's", O_RDONLY), denied = other == -1 && errno == EACCES;
    close(other);
    printf("as the setting says: %d\n", denied == (setting[0] != '0'));
    IN_CHILD("a third party") {
        setgid(7);
        setuid(7);
        TRY_OK(open("sticky/own", O_RDONLY));
        denied = open("sticky/other's", O_RDONLY) == -1 && errno == EACCES;
        printf("as the setting says: %d\n", denied == (setting[0] != '0'));
    }
    IN_CHILD("the link's owner") {
        setgid(6);
        setuid(5);
        TRY_OK(open("sticky/other's", O_RDWR));
    }
    TRY(lchown("sticky", 5, 6));
    TRY_OK(open("sticky/other's", O_RDONLY));
}

int main(void) {
    /* Where it is started may be a sticky directory. */
    mkdir("plain", 0755);
    TRY(chdir("plain"));
    sticky_links();
    input_output();
    attributes();
    sizes_under_change();
    directories();
    locks();
    return 0;
}
