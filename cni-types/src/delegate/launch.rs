//! Starting a program without waiting until it is one.
//!
//! `posix_spawn` and vfork(2) hold the caller until the new process has executed its program, a tenth of all the time
//! that a plugin takes. Here the caller goes on meanwhile: until it calls execve(2), the new process runs in the caller's
//! memory, on a stack of its own (clone(2) with `CLONE_VM` alone). What it finds there must not change, so it is all
//! written before and kept until the process is another program or gone. It makes system calls and nothing else: it
//! allocates nothing, takes no lock, and leaves `errno` alone, which is the caller's too.

use std::cell::UnsafeCell;
use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use syscalls::{Sysno, raw};

/// Bytes of stack for a function that makes six system calls, in a build without optimisation too.
const STACK_SIZE: usize = 16 * 1024;

/// Where a stack has to begin: what the ABI of a processor asks for at most.
const STACK_ALIGNMENT: usize = 16;

/// How a process ends that could not execute its program, as a shell's does.
const NOT_EXECUTED: c_int = 127;

/// The kernel's `struct sigaction`, all zero: what a signal does by default, for signal number and mask of every size.
type KernelSigaction = [u64; 4];

/// Bytes of the kernel's signal mask.
const SIGNAL_MASK_SIZE: usize = size_of::<u64>();

/// A program to be started, and how it went.
#[derive(Debug)]
pub(super) struct Launch {
    shared: Rc<Shared>,
}

/// What the new process reads, and the two things that it writes.
struct Shared {
    program: CString,
    argv: [*const c_char; 2],
    /// Ends with null, and points into `_variables`.
    envp: Vec<*const c_char>,
    _variables: Vec<CString>,
    /// Becomes stdin, stdout and stderr.
    stdio: [File; 3],
    /// The signals that it gets, though the caller holds them back.
    unblocked: u64,
    /// Why the program could not be executed; 0 if it was, or not yet.
    failure: AtomicI32,
    stack: UnsafeCell<Box<[MaybeUninit<u8>]>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Launch {
    /// Prepares the start of `program` with these variables and these files as stdin, stdout and stderr; `unblocked` are
    /// signals that it gets though the caller holds them back.
    ///
    /// # Errors
    /// `EINVAL` for a NUL in the path or a variable.
    pub(super) fn new<'a>(
        program: &Path,
        variables: impl Iterator<Item = (&'a OsStr, &'a OsStr)>,
        stdio: [File; 3],
        unblocked: &[Signal],
    ) -> Result<Self, Errno> {
        let program = CString::new(program.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        let variables =
            variables.map(|(name, value)| variable(name, value)).collect::<Result<Vec<_>, _>>()?;
        let argv = [program.as_ptr(), ptr::null()];
        let envp = variables.iter().map(|variable| variable.as_ptr()).chain([ptr::null()]).collect();
        let shared = Shared {
            program,
            argv,
            envp,
            _variables: variables,
            stdio,
            unblocked: unblocked.iter().fold(0, |mask, signal| mask | 1 << (*signal as u32 - 1)),
            failure: AtomicI32::new(0),
            stack: UnsafeCell::new(Box::new_uninit_slice(STACK_SIZE)),
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Starts it, once. The process has to be waited for before `self` is dropped.
    ///
    /// # Errors
    /// Those of clone(2).
    #[allow(
        unsafe_code,
        reason = "what shares memory with another process cannot be checked by the compiler"
    )]
    pub(super) fn start(&self) -> Result<Pid, Errno> {
        let shared = Rc::as_ptr(&self.shared);
        // SAFETY: the stack is borrowed only here, and the pointer stays within it. The process reads `shared`, which
        // the caller keeps until that process is gone, and writes only the atomic number and its stack in there.
        let pid = unsafe {
            let stack = &mut *(*shared).stack.get();
            let end = stack.as_mut_ptr_range().end;
            let top = end.sub(end.addr() % STACK_ALIGNMENT);
            libc::clone(become_program, top.cast(), libc::CLONE_VM | libc::SIGCHLD, shared.cast_mut().cast())
        };
        Errno::result(pid).map(Pid::from_raw)
    }

    /// The files that it has as stdin, stdout and stderr.
    pub(super) fn stdio(&self) -> &[File; 3] {
        &self.shared.stdio
    }

    /// Why the program was not executed. Known once the process has ended.
    pub(super) fn failure(&self) -> Option<Errno> {
        match self.shared.failure.load(Ordering::Acquire) {
            0 => None,
            errno => Some(Errno::from_raw(errno)),
        }
    }
}

/// Runs in the new process.
extern "C" fn become_program(shared: *mut c_void) -> c_int {
    // SAFETY: the caller keeps it until this process is gone.
    #[allow(unsafe_code, reason = "clone(2) passes a pointer")]
    let shared = unsafe { &*shared.cast::<Shared>() };
    let Err(errno) = execute(shared);
    shared.failure.store(errno, Ordering::Release);
    NOT_EXECUTED
}

/// Does what the program is to find done, and becomes it; hands back the errno of what failed.
#[allow(unsafe_code, reason = "libc's functions write errno")]
fn execute(shared: &Shared) -> Result<std::convert::Infallible, i32> {
    static BY_DEFAULT: KernelSigaction = [0; 4];
    // SAFETY: what the calls read lives as long as `shared` does, or for ever, and they write nothing.
    unsafe {
        for (number, file) in shared.stdio.iter().enumerate() {
            succeeded(raw::syscall3(Sysno::dup3 as usize, file.as_raw_fd() as usize, number, 0))?;
        }
        let by_default: *const KernelSigaction = &raw const BY_DEFAULT;
        succeeded(raw::syscall4(
            Sysno::rt_sigaction as usize,
            libc::SIGPIPE as usize,
            by_default as usize,
            0,
            SIGNAL_MASK_SIZE,
        ))?;
        let unblocked: *const u64 = &raw const shared.unblocked;
        succeeded(raw::syscall4(
            Sysno::rt_sigprocmask as usize,
            libc::SIG_UNBLOCK as usize,
            unblocked as usize,
            0,
            SIGNAL_MASK_SIZE,
        ))?;
        let (argv, envp) = (shared.argv.as_ptr(), shared.envp.as_ptr());
        let failed = raw::syscall3(
            Sysno::execve as usize,
            shared.program.as_ptr() as usize,
            argv as usize,
            envp as usize,
        );
        Err(succeeded(failed).err().unwrap_or(libc::EIO))
    }
}

/// What a system call answered: a negative errno where it failed.
fn succeeded(answer: usize) -> Result<(), i32> {
    match answer.cast_signed() {
        failure @ -4095..=-1 => Err(i32::try_from(-failure).unwrap_or(libc::EIO)),
        _ => Ok(()),
    }
}

fn variable(name: &OsStr, value: &OsStr) -> Result<CString, Errno> {
    let mut text = Vec::with_capacity(name.len() + value.len() + 2);
    text.extend_from_slice(name.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text).map_err(|_| Errno::EINVAL)
}
