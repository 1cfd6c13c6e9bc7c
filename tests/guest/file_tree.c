/* rename, link, unlink, symlink, mkdir, rmdir: who may replace whom, and what stays. */
#include "check.h"


static void erase(const char *path) {
    if (unlink(path) && errno == EISDIR) {
        char inner[64];
        snprintf(inner, sizeof inner, "%s/in", path);
        unlink(inner);
        rmdir(path);
    }
}

static void again(void) {
    const char *names[] = {"a", "b", "dir", "full", "other", "l", "x", "y"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        erase(names[i]);
    write_file("a", "a");
    write_file("b", "b");
    mkdir("dir", 0755);
    mkdir("other", 0755);
    mkdir("full", 0755);
    write_file("full/in", "in");
    symlink("a", "l");
}

static void renames(void) {
    const char *names[] = {"a", "b", "dir", "other", "full", "l", "x", "dir/in", "full/in", "dir/", "a/", ".", "dir/..", "missing/x"};
    enum { COUNT = sizeof names / sizeof *names };
    for (int from = 0; from < COUNT; from++)
        for (int to = 0; to < COUNT; to++) {
            again();
            if (rename(names[from], names[to]) < 0)
                printf("%s -> %s: %s\n", names[from], names[to], strerrorname_np(errno));
            else
                printf("%s -> %s: ok%s\n", names[from], names[to], access(names[from], F_OK) && errno == ENOENT ? "" : ", still there");
            rename("x", "y");
            unlink("dir/in");
            rmdir("dir/in");
            erase("dir/in");
        }
    again();
    TRY(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE));
    TRY(renameat2(AT_FDCWD, "a", AT_FDCWD, "full", RENAME_EXCHANGE));
    show_file("a/in");
    show_file("full");
    TRY(renameat2(AT_FDCWD, "a", AT_FDCWD, "missing", RENAME_EXCHANGE));
    TRY(renameat2(AT_FDCWD, "a", AT_FDCWD, "x", RENAME_EXCHANGE | RENAME_NOREPLACE));
    TRY(renameat2(AT_FDCWD, "a", AT_FDCWD, "x", 0x100));
    TRY(rename("a", "a/in/deeper"));
    unlink("a/in");
    rmdir("a");
    unlink("full");
}

static void links(void) {
    again();
    struct stat status;
    TRY(link("a", "x"));
    TRY(link("a", "x"));
    stat("a", &status);
    printf("links %ld\n", (long)status.st_nlink);
    TRY(link("dir", "y"));
    TRY(link("missing", "y"));
    TRY(link("a", "missing/y"));
    TRY(link("l", "y"));
    lstat("y", &status);
    printf("link to a link: %s\n", S_ISLNK(status.st_mode) ? "a link" : "the file");
    unlink("y");
    TRY(linkat(AT_FDCWD, "l", AT_FDCWD, "y", AT_SYMLINK_FOLLOW));
    write_file("x", "through");
    show_file("a");
    TRY(rename("a", "x"));
    stat("x", &status);
    printf("links after renaming onto itself %ld\n", (long)status.st_nlink);
    int open_file = open("b", O_RDWR);
    unlink("b");
    char text[8] = "";
    TRY(read(open_file, text, 8));
    TRY(write(open_file, "more", 4));
    fstat(open_file, &status);
    printf("unlinked: links %ld size %ld\n", (long)status.st_nlink, (long)status.st_size);
    stat("dir", &status);
    long before = (long)status.st_nlink;
    mkdir("dir/sub", 0755);
    stat("dir", &status);
    printf("directory's links grow by %ld\n", (long)status.st_nlink - before);
    TRY(rmdir("dir"));
    TRY(unlink("dir"));
    TRY(rmdir("dir/sub"));
    TRY(rmdir("dir/."));
    TRY(rmdir("dir/.."));
    TRY(rmdir("a"));
    TRY(unlink("a/"));
    TRY(unlink("missing"));
    TRY(unlinkat(AT_FDCWD, "dir", AT_REMOVEDIR));
    TRY(unlinkat(AT_FDCWD, "x", 0x1));
    TRY(mkdir("a", 0755));
    TRY(mkdir("l", 0755));
    TRY(mkdir("dir/", 0700));
    TRY(mkdir("missing/x", 0755));
    TRY(mkdir("/", 0755));
    int inside = open("other", O_RDONLY);
    rmdir("other");
    TRY(openat(inside, "x", O_CREAT | O_RDWR, 0600));
    TRY(openat(inside, "..", O_RDONLY) >= 0 ? 0 : -1);
    TRY(mkdirat(inside, "x", 0700));
    mkdir("gone", 0755);
    chdir("gone");
    rmdir("../gone");
    TRY_OK(syscall(SYS_getcwd, text, sizeof text));
    TRY(open("x", O_CREAT | O_RDWR, 0600));
    TRY(chdir(".."));
}

static void symlinks(void) {
    char text[300];
    TRY(symlink("target", "s1"));
    TRY(symlink("target", "s1"));
    TRY(symlink("", "s2"));
    TRY(readlink("s1", text, 3));
    TRY(readlink("s1", text, sizeof text));
    TRY(readlink("full", text, sizeof text));
    TRY(readlink("missing", text, sizeof text));
    TRY(readlink("s1", text, 0));
    symlink("loop2", "loop1");
    symlink("loop1", "loop2");
    TRY(open("loop1", O_RDONLY));
    TRY(chdir("loop1"));
    TRY(unlink("loop1"));
    char name[16], to[16];
    write_file("end", "end");
    symlink("end", "c0");
    for (int i = 1; i <= 45; i++) {
        snprintf(name, sizeof name, "c%d", i);
        snprintf(to, sizeof to, "c%d", i - 1);
        symlink(to, name);
    }
    TRY_OK(open("c39", O_RDONLY));
    TRY_OK(open("c40", O_RDONLY));
    mkdir("real", 0755);
    symlink("real", "toreal");
    TRY(mkdir("toreal/x", 0755));
    TRY(rmdir("toreal"));
    TRY(unlink("toreal/"));
    TRY(access("toreal/x", F_OK));
    struct stat status;
    TRY(lstat("toreal/", &status));
    printf("directory %d\n", S_ISDIR(status.st_mode));
    TRY(lstat("toreal", &status));
    printf("link %d size %ld\n", S_ISLNK(status.st_mode), (long)status.st_size);
    symlink("absent/", "slash");
    TRY(open("slash", O_CREAT | O_RDWR, 0600));
    TRY(rename("toreal", "renamed"));
    TRY(readlink("renamed", text, sizeof text));
    TRY(rename("real", "renamed"));
}

int main(void) {
    renames();
    links();
    symlinks();
    return 0;
}
