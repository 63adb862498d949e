//! The C side: a `sqlite3_vfs` and its `sqlite3_io_methods`, forwarding to the default VFS. All `unsafe` is here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::ffi;
use rusqlite::ffi::{sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use crate::Fault;
use crate::shared::{Outcome, Shared};

/// What `pAppData` of a registered VFS points to. Never freed, as connections may outlive the registration.
struct App {
    real: *mut sqlite3_vfs,
    shared: Arc<Shared>,
    /// What `zName` points to.
    name: CString,
}

/// An open file. SQLite allocates it, `szOsFile` bytes; the file of the real VFS lies behind it.
#[repr(C, align(8))]
struct File {
    base: sqlite3_file,
    /// From `Box::into_raw`; null for a file that is not recorded.
    handle: *mut Handle,
}

struct Handle {
    shared: Arc<Shared>,
    inode: u64,
    name: PathBuf,
    /// The first sync is to sync the directory too, as the unix VFS does for journals.
    syncs_directory: AtomicBool,
}

/// One registration at a time, so that looking whether a name is free and taking it are one step.
static REGISTERING: Mutex<()> = Mutex::new(());

pub(crate) fn register(name: &str, shared: &Arc<Shared>) {
    let c_name = CString::new(name).unwrap_or_else(|_| panic!("a VFS name without NUL, not {name:?}"));
    let _one_at_a_time = REGISTERING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the argument is a C string. The call initialises SQLite if need be.
    let taken = unsafe { ffi::sqlite3_vfs_find(c_name.as_ptr()) };
    assert!(taken.is_null(), "the VFS name {name:?} is in use");
    // SAFETY: null asks for the default VFS.
    let real = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    assert!(!real.is_null(), "SQLite has a default VFS");
    // SAFETY: registered VFS stay valid while they are registered, and nothing unregisters the default one.
    let (version, size, longest) = unsafe { ((*real).iVersion, (*real).szOsFile, (*real).mxPathname) };
    let own = c_int::try_from(size_of::<File>()).expect("a small struct");
    let app: &'static App = Box::leak(Box::new(App { real, shared: Arc::clone(shared), name: c_name }));
    let vfs = Box::leak(Box::new(sqlite3_vfs {
        iVersion: version.min(3),
        szOsFile: own + size,
        mxPathname: longest,
        pNext: ptr::null_mut(),
        zName: app.name.as_ptr(),
        pAppData: ptr::from_ref(app).cast_mut().cast(),
        xOpen: Some(x_open),
        xDelete: Some(x_delete),
        xAccess: Some(x_access),
        xFullPathname: Some(x_full_pathname),
        xDlOpen: Some(x_dl_open),
        xDlError: Some(x_dl_error),
        xDlSym: Some(x_dl_sym),
        xDlClose: Some(x_dl_close),
        xRandomness: Some(x_randomness),
        xSleep: Some(x_sleep),
        xCurrentTime: Some(x_current_time),
        xGetLastError: Some(x_get_last_error),
        xCurrentTimeInt64: Some(x_current_time_int64),
        xSetSystemCall: Some(x_set_system_call),
        xGetSystemCall: Some(x_get_system_call),
        xNextSystemCall: Some(x_next_system_call),
    }));
    // SAFETY: the struct and all it points to are leaked, so they outlive any use by SQLite.
    let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
    assert_eq!(code, ffi::SQLITE_OK, "register a VFS");
}

pub(crate) fn unregister(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    let _one_at_a_time = REGISTERING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the argument is a C string.
    let vfs = unsafe { ffi::sqlite3_vfs_find(name.as_ptr()) };
    if !vfs.is_null() {
        // SAFETY: it was registered, just found, and is never freed: open connections go on using it.
        unsafe { ffi::sqlite3_vfs_unregister(vfs) };
    }
}

/// # Safety
/// `vfs` is one that [`register`] made. The borrow is of leaked memory.
unsafe fn app(vfs: *mut sqlite3_vfs) -> &'static App {
    // SAFETY: `register` set `pAppData` to a leaked `App`, and nothing changes either.
    unsafe { &*(*vfs).pAppData.cast::<App>() }
}

/// The file of the real VFS behind ours.
///
/// # Safety
/// `file` has room for `szOsFile` bytes of a VFS of [`register`].
unsafe fn real_file(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: `szOsFile` is the size of `File` plus that of the real file, so this stays within the allocation; SQLite aligns
    // it to 8 and the size of `File` is a multiple of that.
    unsafe { file.cast::<File>().add(1).cast() }
}

/// # Safety
/// `file` was opened by [`x_open`] and not closed; SQLite calls the methods of one file one at a time, close last.
unsafe fn handle<'a>(file: *mut sqlite3_file) -> Option<&'a Handle> {
    // SAFETY: `x_open` set the pointer to null or to a boxed handle, which only `x_close` frees.
    unsafe { (*file.cast::<File>()).handle.as_ref() }
}

/// # Safety
/// `path` is a C string that outlives the result.
unsafe fn to_path<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: as the caller promises.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

/// Calls a method of the real file: `real_call!(file, xRead(buffer, amount, at), or code)`.
macro_rules! real_call {
    ($file:expr, $method:ident($($arg:expr),*), or $missing:expr) => {{
        // SAFETY: SQLite calls with a file that `x_open` opened, so the real file is open too and has methods. The arguments
        // are those SQLite gave for the method of the same name.
        unsafe {
            let real = real_file($file);
            match (*(*real).pMethods).$method {
                Some(method) => method(real $(, $arg)*),
                None => $missing,
            }
        }
    }};
}

/// Defines functions that only forward: of the VFS, or of a file.
macro_rules! forward {
    ($(vfs $name:ident = $method:ident($($arg:ident: $kind:ty),*) -> $out:ty, or $missing:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs $(, $arg: $kind)*) -> $out {
            // SAFETY: SQLite calls with a VFS that `register` made, whose real VFS is the default one and stays valid. The
            // arguments are those SQLite gave for the method of the same name.
            unsafe {
                let real = app(vfs).real;
                match (*real).$method {
                    Some(method) => method(real $(, $arg)*),
                    None => $missing,
                }
            }
        }
    )*};
    ($(file $name:ident = $method:ident($($arg:ident: $kind:ty),*) -> $out:ty, or $missing:expr;)*) => {$(
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $arg: $kind)*) -> $out {
            real_call!(file, $method($($arg),*), or $missing)
        }
    )*};
}

type Symbol = Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char)>;

forward! {
    vfs x_access = xAccess(path: *const c_char, flags: c_int, out: *mut c_int) -> c_int, or ffi::SQLITE_IOERR;
    vfs x_full_pathname = xFullPathname(path: *const c_char, size: c_int, out: *mut c_char) -> c_int, or ffi::SQLITE_CANTOPEN;
    vfs x_dl_open = xDlOpen(path: *const c_char) -> *mut c_void, or ptr::null_mut();
    vfs x_dl_error = xDlError(size: c_int, out: *mut c_char) -> (), or ();
    vfs x_dl_sym = xDlSym(library: *mut c_void, symbol: *const c_char) -> Symbol, or None;
    vfs x_dl_close = xDlClose(library: *mut c_void) -> (), or ();
    vfs x_randomness = xRandomness(size: c_int, out: *mut c_char) -> c_int, or 0;
    vfs x_sleep = xSleep(microseconds: c_int) -> c_int, or 0;
    vfs x_current_time = xCurrentTime(out: *mut f64) -> c_int, or ffi::SQLITE_ERROR;
    vfs x_get_last_error = xGetLastError(size: c_int, out: *mut c_char) -> c_int, or 0;
    vfs x_current_time_int64 = xCurrentTimeInt64(out: *mut sqlite3_int64) -> c_int, or ffi::SQLITE_ERROR;
    vfs x_set_system_call = xSetSystemCall(name: *const c_char, call: ffi::sqlite3_syscall_ptr) -> c_int, or ffi::SQLITE_NOTFOUND;
    vfs x_get_system_call = xGetSystemCall(name: *const c_char) -> ffi::sqlite3_syscall_ptr, or None;
    vfs x_next_system_call = xNextSystemCall(name: *const c_char) -> *const c_char, or ptr::null();
}

forward! {
    file x_read = xRead(buffer: *mut c_void, amount: c_int, at: sqlite3_int64) -> c_int, or ffi::SQLITE_IOERR_READ;
    file x_file_size = xFileSize(out: *mut sqlite3_int64) -> c_int, or ffi::SQLITE_IOERR_FSTAT;
    file x_lock = xLock(level: c_int) -> c_int, or ffi::SQLITE_IOERR_LOCK;
    file x_unlock = xUnlock(level: c_int) -> c_int, or ffi::SQLITE_IOERR_UNLOCK;
    file x_check_reserved_lock = xCheckReservedLock(out: *mut c_int) -> c_int, or ffi::SQLITE_IOERR_CHECKRESERVEDLOCK;
    file x_sector_size = xSectorSize() -> c_int, or 4096;
    file x_shm_map = xShmMap(region: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int, or ffi::SQLITE_IOERR_SHMMAP;
    file x_shm_lock = xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int, or ffi::SQLITE_IOERR_SHMLOCK;
    file x_shm_barrier = xShmBarrier() -> (), or ();
    file x_shm_unmap = xShmUnmap(delete: c_int) -> c_int, or ffi::SQLITE_OK;
}

/// Version 2, without `xFetch`: for a memory map the real VFS lets the file grow unseen.
static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_file_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: Some(x_shm_map),
    xShmLock: Some(x_shm_lock),
    xShmBarrier: Some(x_shm_barrier),
    xShmUnmap: Some(x_shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn x_open(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    const TEMPORARY: c_int = ffi::SQLITE_OPEN_DELETEONCLOSE
        | ffi::SQLITE_OPEN_TEMP_DB
        | ffi::SQLITE_OPEN_TRANSIENT_DB
        | ffi::SQLITE_OPEN_TEMP_JOURNAL
        | ffi::SQLITE_OPEN_SUBJOURNAL;
    const JOURNAL: c_int = ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;

    // SAFETY: SQLite calls with a VFS that `register` made.
    let app = unsafe { app(vfs) };
    let name = if path.is_null() || flags & TEMPORARY != 0 {
        None
    } else {
        // SAFETY: not null, so it is a C string, which outlives this call.
        app.shared.relative(unsafe { to_path(path) })
    };
    let own = file.cast::<File>();
    // SAFETY: SQLite gives `szOsFile` bytes, aligned to 8, for this call to fill; no reference to them exists.
    let real = unsafe {
        own.write(File { base: sqlite3_file { pMethods: ptr::null() }, handle: ptr::null_mut() });
        let real = real_file(file);
        (*real).pMethods = ptr::null();
        real
    };
    let open_real = || {
        // SAFETY: the arguments are SQLite's own, and `real` has the room the real VFS asks for. The name is passed as the
        // pointer it is, because the parameters of the URI stand behind it and the real VFS keeps it.
        let code = unsafe {
            match (*app.real).xOpen {
                Some(open) => open(app.real, path, real, flags, out_flags),
                None => ffi::SQLITE_CANTOPEN,
            }
        };
        // SAFETY: the real file was initialised above or by `open`. A file that has methods is to be closed even if
        // opening it failed; ours shall have none then.
        unsafe {
            if code != ffi::SQLITE_OK
                && let Some(methods) = (*real).pMethods.as_ref()
                && let Some(close) = methods.xClose
            {
                close(real);
            }
        }
        code
    };
    let handle = match name {
        None => match open_real() {
            ffi::SQLITE_OK => ptr::null_mut(),
            code => return code,
        },
        Some(name) => match app.shared.open(&name, open_real) {
            Err(code) => return code,
            Ok(None) => ptr::null_mut(),
            Ok(Some(inode)) => Box::into_raw(Box::new(Handle {
                shared: Arc::clone(&app.shared),
                inode,
                name,
                syncs_directory: AtomicBool::new(flags & ffi::SQLITE_OPEN_CREATE != 0 && flags & JOURNAL != 0),
            })),
        },
    };
    // SAFETY: initialised above, and SQLite does not use it before this returns.
    unsafe {
        (*own).handle = handle;
        (*own).base.pMethods = &raw const METHODS;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_close(file: *mut sqlite3_file) -> c_int {
    let code = real_call!(file, xClose(), or ffi::SQLITE_OK);
    let own = file.cast::<File>();
    // SAFETY: `x_open` put null or a boxed handle here; after close SQLite calls no method of the file, so nobody else has it.
    let handle = unsafe {
        let raw = (*own).handle;
        (*own).handle = ptr::null_mut();
        (*own).base.pMethods = ptr::null();
        (!raw.is_null()).then(|| Box::from_raw(raw))
    };
    if let Some(handle) = handle {
        handle.shared.close(handle.inode);
    }
    code
}

unsafe extern "C" fn x_write(
    file: *mut sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    at: sqlite3_int64,
) -> c_int {
    let real = |amount| real_call!(file, xWrite(buffer, amount, at), or ffi::SQLITE_IOERR_WRITE);
    // SAFETY: an open file.
    let Some(handle) = (unsafe { handle(file) }) else { return real(amount) };
    let (Ok(length), Ok(start)) = (usize::try_from(amount), u64::try_from(at)) else { return ffi::SQLITE_IOERR_WRITE };
    // SAFETY: SQLite gives `amount` readable bytes, which nobody changes during the call.
    let data = unsafe { slice::from_raw_parts(buffer.cast::<u8>(), length) };
    // A prefix of it, if not all: `length` bytes are readable, and their number fits.
    let real = |part: usize| real(c_int::try_from(part).unwrap_or(amount));
    match handle.shared.write(handle.inode, start, data, real) {
        Outcome::Done => ffi::SQLITE_OK,
        Outcome::Failed(code) => code,
        Outcome::Faulted(Fault::WriteFull) => ffi::SQLITE_FULL,
        Outcome::Faulted(_) => ffi::SQLITE_IOERR_WRITE,
    }
}

unsafe extern "C" fn x_truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    let real = || real_call!(file, xTruncate(size), or ffi::SQLITE_IOERR_TRUNCATE);
    // SAFETY: an open file.
    let Some(handle) = (unsafe { handle(file) }) else { return real() };
    let Ok(length) = u64::try_from(size) else { return ffi::SQLITE_IOERR_TRUNCATE };
    match handle.shared.truncate(handle.inode, length, real) {
        Outcome::Done => ffi::SQLITE_OK,
        Outcome::Failed(code) => code,
        Outcome::Faulted(_) => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn x_sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: an open file.
    let Some(handle) = (unsafe { handle(file) }) else {
        return real_call!(file, xSync(flags), or ffi::SQLITE_IOERR_FSYNC);
    };
    // The real file is left alone: what is durable is the model's business.
    let directory_of = handle.syncs_directory.load(Ordering::Relaxed).then_some(handle.name.as_path());
    match handle.shared.sync(handle.inode, directory_of) {
        Outcome::Done => {
            handle.syncs_directory.store(false, Ordering::Relaxed);
            ffi::SQLITE_OK
        }
        Outcome::Failed(code) => code,
        Outcome::Faulted(_) => ffi::SQLITE_IOERR_FSYNC,
    }
}

unsafe extern "C" fn x_file_control(file: *mut sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: an open file.
    let recorded = unsafe { handle(file) }.is_some();
    match op {
        // A hint, and with a chunk size or a memory map the real VFS would let the file grow without a write.
        ffi::SQLITE_FCNTL_SIZE_HINT if recorded => ffi::SQLITE_OK,
        ffi::SQLITE_FCNTL_CHUNK_SIZE
        | ffi::SQLITE_FCNTL_MMAP_SIZE
        | ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE
        | ffi::SQLITE_FCNTL_COMMIT_ATOMIC_WRITE
        | ffi::SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE
            if recorded =>
        {
            ffi::SQLITE_NOTFOUND
        }
        _ => real_call!(file, xFileControl(op, argument), or ffi::SQLITE_NOTFOUND),
    }
}

unsafe extern "C" fn x_device_characteristics(file: *mut sqlite3_file) -> c_int {
    // Only what the model grants: no atomic writes, no safe append, no order.
    const GRANTED: c_int = ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | ffi::SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN
        | ffi::SQLITE_IOCAP_IMMUTABLE
        | ffi::SQLITE_IOCAP_SUBPAGE_READ;
    real_call!(file, xDeviceCharacteristics(), or 0) & GRANTED
}

unsafe extern "C" fn x_delete(vfs: *mut sqlite3_vfs, path: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite calls with a VFS that `register` made.
    let app = unsafe { app(vfs) };
    let real = |sync_directory| {
        // SAFETY: the arguments are SQLite's own, and the real VFS stays valid.
        unsafe {
            match (*app.real).xDelete {
                Some(delete) => delete(app.real, path, sync_directory),
                None => ffi::SQLITE_IOERR_DELETE,
            }
        }
    };
    // SAFETY: SQLite deletes by a path, which is a C string and outlives this call.
    match app.shared.relative(unsafe { to_path(path) }) {
        Some(name) => app.shared.delete(&name, sync_directory & 1 != 0, || real(0)),
        None => real(sync_directory),
    }
}
