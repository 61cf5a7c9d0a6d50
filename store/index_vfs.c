#include <pthread.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "store/index_impl.h"

/*
 * A thin layer over SQLite's own VFS, so that every write, sync, truncation, removal and creation
 * that SQLite does is a fault point like our own calls: crash tests kill there, failure tests fail
 * there. The wal-index (shared memory) is no file content of ours and is not hooked.
 */

struct shim_file {
    sqlite3_file base;
    sqlite3_file *real; // lies behind this struct
};

static sqlite3_vfs shim_vfs;
static sqlite3_vfs *real_vfs;

static sqlite3_file *real_of(sqlite3_file *f)
{
    return ((struct shim_file *)f)->real;
}

#define FAULT(class_bits, code)                                                                    \
    do {                                                                                           \
        if (sys_fault_point(class_bits))                                                           \
            return code;                                                                           \
    } while (0)
enum { READS = SYS_FAULT_FILE, CHANGES = SYS_FAULT_FILE | SYS_FAULT_CHANGE };

static int shim_close(sqlite3_file *f)
{
    return real_of(f)->pMethods->xClose(real_of(f));
}

static int shim_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 offset)
{
    FAULT(READS, SQLITE_IOERR_READ);
    return real_of(f)->pMethods->xRead(real_of(f), buf, n, offset);
}

static int shim_write(sqlite3_file *f, const void *buf, int n, sqlite3_int64 offset)
{
    FAULT(CHANGES, SQLITE_IOERR_WRITE);
    return real_of(f)->pMethods->xWrite(real_of(f), buf, n, offset);
}

static int shim_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    FAULT(CHANGES, SQLITE_IOERR_TRUNCATE);
    return real_of(f)->pMethods->xTruncate(real_of(f), size);
}

static int shim_sync(sqlite3_file *f, int flags)
{
    FAULT(CHANGES, SQLITE_IOERR_FSYNC);
    return real_of(f)->pMethods->xSync(real_of(f), flags);
}

static int shim_file_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return real_of(f)->pMethods->xFileSize(real_of(f), size);
}

static int shim_lock(sqlite3_file *f, int level)
{
    return real_of(f)->pMethods->xLock(real_of(f), level);
}

static int shim_unlock(sqlite3_file *f, int level)
{
    return real_of(f)->pMethods->xUnlock(real_of(f), level);
}

static int shim_check_reserved(sqlite3_file *f, int *out)
{
    return real_of(f)->pMethods->xCheckReservedLock(real_of(f), out);
}

static int shim_file_control(sqlite3_file *f, int op, void *arg)
{
    return real_of(f)->pMethods->xFileControl(real_of(f), op, arg);
}

static int shim_sector_size(sqlite3_file *f)
{
    return real_of(f)->pMethods->xSectorSize(real_of(f));
}

static int shim_characteristics(sqlite3_file *f)
{
    return real_of(f)->pMethods->xDeviceCharacteristics(real_of(f));
}

static int shim_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out)
{
    return real_of(f)->pMethods->xShmMap(real_of(f), page, size, extend, out);
}

static int shim_shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
    return real_of(f)->pMethods->xShmLock(real_of(f), offset, n, flags);
}

static void shim_shm_barrier(sqlite3_file *f)
{
    real_of(f)->pMethods->xShmBarrier(real_of(f));
}

static int shim_shm_unmap(sqlite3_file *f, int delete_it)
{
    return real_of(f)->pMethods->xShmUnmap(real_of(f), delete_it);
}

// Version 2: with shared memory (WAL), without xFetch, so that all reads pass shim_read().
static const sqlite3_io_methods shim_methods = {
    .iVersion = 2,
    .xClose = shim_close,
    .xRead = shim_read,
    .xWrite = shim_write,
    .xTruncate = shim_truncate,
    .xSync = shim_sync,
    .xFileSize = shim_file_size,
    .xLock = shim_lock,
    .xUnlock = shim_unlock,
    .xCheckReservedLock = shim_check_reserved,
    .xFileControl = shim_file_control,
    .xSectorSize = shim_sector_size,
    .xDeviceCharacteristics = shim_characteristics,
    .xShmMap = shim_shm_map,
    .xShmLock = shim_shm_lock,
    .xShmBarrier = shim_shm_barrier,
    .xShmUnmap = shim_shm_unmap,
};

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out_flags)
{
    (void)vfs;
    struct shim_file *shim = (struct shim_file *)f;
    shim->base.pMethods = NULL;
    shim->real = (sqlite3_file *)(shim + 1);
    FAULT(flags & SQLITE_OPEN_CREATE ? CHANGES : READS, SQLITE_CANTOPEN);
    int rc = real_vfs->xOpen(real_vfs, name, shim->real, flags, out_flags);
    if (rc == SQLITE_OK)
        shim->base.pMethods = &shim_methods;
    return rc;
}

static int shim_delete(sqlite3_vfs *vfs, const char *name, int sync_folder)
{
    (void)vfs;
    FAULT(CHANGES, SQLITE_IOERR_DELETE);
    return real_vfs->xDelete(real_vfs, name, sync_folder);
}

// ---- memory ------------------------------------------------------------------------------------

// SQLite asks for the size of what it has; it stands in front of each piece.
enum { SIZE_BYTES = 16 };

static void *memory_malloc(int n)
{
    char *p = sys_malloc((size_t)n + SIZE_BYTES);
    if (!p)
        return NULL;
    memcpy(p, &n, sizeof n);
    return p + SIZE_BYTES;
}

static void memory_free(void *p)
{
    if (p)
        sys_free((char *)p - SIZE_BYTES);
}

static int memory_size(void *p)
{
    int n = 0;
    if (p)
        memcpy(&n, (char *)p - SIZE_BYTES, sizeof n);
    return n;
}

static void *memory_realloc(void *p, int n)
{
    char *q = sys_realloc((char *)p - SIZE_BYTES, (size_t)n + SIZE_BYTES);
    if (!q)
        return NULL;
    memcpy(q, &n, sizeof n);
    return q + SIZE_BYTES;
}

static int memory_roundup(int n)
{
    return (n + 7) & ~7;
}

static int memory_init(void *arg)
{
    (void)arg;
    return SQLITE_OK;
}

static void memory_shutdown(void *arg)
{
    (void)arg;
}

static int register_shim(struct err *err)
{
    static const sqlite3_mem_methods memory = {
        memory_malloc,  memory_free, memory_realloc,  memory_size,
        memory_roundup, memory_init, memory_shutdown, NULL,
    };
    // Somebody else may have started SQLite in this process: then its allocator stays.
    sqlite3_config(SQLITE_CONFIG_MALLOC, &memory);
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    int rc = sqlite3_initialize();
    if (rc != SQLITE_OK)
        return err_set(err, rc == SQLITE_NOMEM ? ERR_NO_MEMORY : ERR_INTERNAL,
                       "SQLite cannot start: %s", sqlite3_errstr(rc));
    real_vfs = sqlite3_vfs_find(NULL);
    if (!real_vfs)
        return err_set(err, ERR_INTERNAL, "SQLite has no file system layer");
    shim_vfs = *real_vfs;
    shim_vfs.zName = "lora";
    shim_vfs.pNext = NULL;
    shim_vfs.szOsFile = (int)sizeof(struct shim_file) + real_vfs->szOsFile;
    shim_vfs.xOpen = shim_open;
    shim_vfs.xDelete = shim_delete;
    sqlite3_vfs_register(&shim_vfs, 0);
    return 0;
}

int index_vfs_register(struct err *err)
{
    // No pthread_once: a start that failed for want of memory may be tried again.
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static bool done;
    pthread_mutex_lock(&mutex);
    int rc = done ? 0 : register_shim(err);
    done = rc == 0;
    pthread_mutex_unlock(&mutex);
    return rc;
}
