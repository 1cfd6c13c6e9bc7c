/* open and its flags; descriptors; what paths may look like. */
#include "check.h"
#include <linux/openat2.h>

static const char *long_name(int length) {
    static char name[5000];
    memset(name, 'n', sizeof name);
    name[length] = 0;
    return name;
}

int main(void) {
    TRY(open("new", O_RDWR | O_CREAT | O_EXCL, 0666));
    TRY(open("new", O_RDWR | O_CREAT | O_EXCL, 0666));
    TRY(open("missing", O_RDONLY));
    TRY(open("", O_RDONLY));
    TRY(open("missing/under", O_RDONLY));
    TRY(open("new/under", O_RDONLY));
    TRY(open("new/", O_RDONLY));
    TRY(open("new/.", O_RDONLY));
    TRY(open(".", O_RDWR));
    TRY(open(".", O_WRONLY));
    TRY(open(".", O_RDONLY | O_CREAT, 0600));
    TRY(open("made/", O_RDWR | O_CREAT, 0600));
    TRY(open("new", O_RDONLY | O_DIRECTORY));
    TRY(open((char *)8, O_RDONLY));
    TRY(open(long_name(255), O_RDWR | O_CREAT, 0600));
    TRY(unlink(long_name(255)));
    TRY(open(long_name(256), O_RDWR | O_CREAT, 0600));
    TRY(open(long_name(4999), O_RDWR));
    symlink("new", "link");
    symlink("nowhere", "dangling");
    TRY(open("link", O_RDONLY | O_NOFOLLOW));
    TRY(open("dangling", O_RDONLY));
    TRY(open("dangling", O_RDWR | O_CREAT | O_EXCL, 0600));
    TRY(open("dangling", O_RDWR | O_CREAT, 0600));
    TRY(access("nowhere", F_OK));
    int path = open("link", O_PATH | O_NOFOLLOW);
    char text[64];
    TRY(read(path, text, 1));
    TRY(readlinkat(path, "", text, sizeof text));
    TRY(fchmod(path, 0600));
    TRY(fcntl(path, F_GETFL) & O_PATH ? 1 : 0);
    struct stat status;
    TRY(fstat(path, &status));
    printf("link %d\n", S_ISLNK(status.st_mode));
    int writing = open("new", O_WRONLY | O_APPEND);
    TRY(write(writing, "hello", 5));
    TRY(read(writing, text, 1));
    TRY(lseek(writing, 0, SEEK_SET));
    TRY(write(writing, "more", 4));
    TRY(pwrite(writing, "at end", 6, 0));
    show_file("new");
    TRY(fcntl(writing, F_SETFL, O_NONBLOCK));
    printf("flags %#x\n", fcntl(writing, F_GETFL) & ~O_LARGEFILE & ~0100000);
    int truncated = open("new", O_RDWR | O_TRUNC);
    fstat(truncated, &status);
    printf("size %ld\n", (long)status.st_size);
    int hidden = open(".", O_TMPFILE | O_RDWR, 0640);
    printf("O_TMPFILE %s\n", hidden < 0 ? strerrorname_np(errno) : "ok");
    if (hidden >= 0) {
        write(hidden, "hidden", 6);
        fstat(hidden, &status);
        printf("links %ld mode %o\n", (long)status.st_nlink, status.st_mode);
        char self[64];
        snprintf(self, sizeof self, "/proc/self/fd/%d", hidden);
        TRY(linkat(AT_FDCWD, self, AT_FDCWD, "shown", AT_SYMLINK_FOLLOW));
        show_file("shown");
    }
    umask(077);
    close(open("private", O_CREAT | O_RDWR, 0666));
    stat("private", &status);
    printf("mode %o\n", status.st_mode);
    umask(022);
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    TRY_OK(openat(directory, "new", O_RDONLY));
    TRY(openat(writing, "new", O_RDONLY));
    TRY(openat(999, "new", O_RDONLY));
    TRY_OK(openat(999, "/", O_RDONLY));
    TRY(read(directory, text, 1));
    TRY(write(directory, text, 1));
    TRY(creat("created", 0400));
    TRY(open("created", O_WRONLY));
    TRY(mknod("node", S_IFIFO | 0600, 0));
    TRY(mknod("socket", S_IFSOCK | 0600, 0));
    TRY(open("socket", O_RDWR));
    struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_NO_SYMLINKS};
    TRY(syscall(SYS_openat2, AT_FDCWD, "link", &how, sizeof how));
    how.resolve = RESOLVE_BENEATH;
    TRY(syscall(SYS_openat2, AT_FDCWD, "/etc", &how, sizeof how));
    TRY(syscall(SYS_openat2, AT_FDCWD, "..", &how, sizeof how));
    how.resolve = 1ul << 40;
    TRY(syscall(SYS_openat2, AT_FDCWD, "new", &how, sizeof how));
    /* Descriptors. */
    close(100);
    TRY(dup2(writing, 100));
    TRY(dup2(100, 100));
    TRY(dup3(100, 100, 0));
    TRY(dup3(100, 101, 0x5));
    TRY(dup2(999, 5));
    TRY(dup2(writing, 100000000));
    TRY(fcntl(writing, F_DUPFD, 200));
    TRY(fcntl(writing, F_DUPFD_CLOEXEC, 200));
    TRY(fcntl(201, F_GETFD));
    TRY(fcntl(writing, F_DUPFD, 100000000));
    TRY(syscall(SYS_close_range, 190, 300, 0));
    TRY(fcntl(200, F_GETFD));
    TRY(syscall(SYS_close_range, 300, 200, 0));
    TRY(close(999));
    int shared = open("new", O_RDWR | O_TRUNC);
    IN_CHILD("shared offset") { write(shared, "abc", 3); }
    TRY(lseek(shared, 0, SEEK_CUR));
    return 0;
}
