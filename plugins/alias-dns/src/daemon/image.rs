//! Starting this binary again, as another part of the server, from an open descriptor of it.
//!
//! The descriptor stays at [`IMAGE_FD`] through every start. So neither a changed path nor dropped rights keep a part
//! from coming back, and the system-call filter can allow this one image to be executed and nothing else.

use std::ffi::c_void;
use std::ffi::{CStr, CString};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, SysconfVar, execveat, fork, sysconf};

use super::channel::{Channel, Parcel};
use super::seqpacket::Seqpacket;

/// Where the open image stands in every part of the server.
pub(crate) const IMAGE_FD: RawFd = 3;

/// How long a part that is started may take for each message that the channel did not hold before.
const READING_PATIENCE: Duration = Duration::from_secs(1);

/// Names the descriptor of the channel to the part that is started.
pub(crate) const CHANNEL_VARIABLE: &str = "ALIAS_DNS_CHANNEL";

/// Says from which level on a part of the server logs, where its stderr is a plugin's log file.
pub(crate) const LOG_VARIABLE: &str = "ALIAS_DNS_LOG";

/// What parts of a server hand on to those that they start.
pub(crate) const PASSED_ON: [&str; 2] = ["CNI_LOG", LOG_VARIABLE];

/// A part of the server: what it is called on its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Answers queries.
    Worker,
    /// Keeps descriptors, starts workers.
    Supervisor,
    /// Outlives both.
    Guard,
}

impl Part {
    /// What it is called in lists of processes. The guard has a name of its own: whoever kills all that are called as
    /// the server shall not kill what brings the names back.
    pub(crate) const fn name(self) -> &'static CStr {
        match self {
            Self::Worker | Self::Supervisor => c"alias-dns",
            Self::Guard => c"cni-names",
        }
    }

    pub(crate) const fn argument(self) -> &'static CStr {
        match self {
            Self::Worker => c"serve",
            Self::Supervisor => c"supervise",
            Self::Guard => c"guard",
        }
    }
}

/// Opens this process' own binary at [`IMAGE_FD`].
///
/// A binary that only its owner may execute could not be started again once the owner's rights are dropped: then a
/// copy of it in memory takes its place.
pub(crate) fn open_own() -> Result<()> {
    let file =
        std::fs::File::from(open("/proc/self/exe", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?);
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata()?.permissions());
    if mode & 0o001 != 0 {
        return place(file.into());
    }
    let mut copy = std::fs::File::from(memory_file()?);
    std::io::copy(&mut &file, &mut copy)?;
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    place(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Gives back the pages of the program's code that starting has taken: a part that only waits from now on needs few of
/// them, and those that it needs are in the page cache. That is most of such a part's memory.
pub(crate) fn forget_code() {
    #[allow(unsafe_code, reason = "only the linker knows where the code is")]
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| usize::try_from(size).ok());
    let Some(page) = page.filter(|size| size.is_power_of_two()) else { return };
    let (start, end) = (&raw const __executable_start as usize, &raw const etext as usize & !(page - 1));
    let start = start.next_multiple_of(page);
    if let Some(code) = NonNull::new(start as *mut c_void).filter(|_| end > start) {
        // SAFETY: the linker puts headers and code there and nothing that is ever written, so that what is read again
        // is what was there.
        #[allow(unsafe_code, reason = "the advice can throw away what was written")]
        let advised = unsafe { madvise(code, end - start, MmapAdvise::MADV_DONTNEED) };
        if let Err(errno) = advised {
            log::debug!("forget code: {errno}");
        }
    }
}

/// A file without a name, which takes what is written into it (memfd_create(2)).
pub(super) fn memory_file() -> Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(memfd_create(c"alias-dns", MFdFlags::MFD_CLOEXEC)?)
}

fn place(image: OwnedFd) -> Result<()> {
    if image.as_raw_fd() == IMAGE_FD {
        std::mem::forget(image);
        return Ok(());
    }
    // SAFETY: the caller has closed what it inherited, so that nothing of this process lives at IMAGE_FD.
    #[allow(unsafe_code, reason = "the number is fixed by convention, not owned by a value")]
    unsafe { nix::unistd::dup3_raw(image, IMAGE_FD, OFlag::O_CLOEXEC) }.map(std::mem::forget)?;
    Ok(())
}

/// Starts the image as `part`, which finds the far end of the returned channel in [`CHANNEL_VARIABLE`].
///
/// What fits of `parcels` is put into the channel first, and reaches the part even if this process is killed the next
/// moment. That is all of them on any but the largest hosts; the rest is sent as the part reads.
pub(crate) fn start(part: Part, parcels: &[Parcel<'_>]) -> Result<Channel> {
    let (near, far) = Seqpacket::pair()?;
    near.limit_sending(READING_PATIENCE)?;
    let near = Channel::from(near);
    let sent = near.send_what_fits(parcels)?;
    let far = far.into_fd();
    let argv = [part.name(), part.argument()];
    // The number cannot hold a NUL.
    let channel = CString::new(format!("{CHANNEL_VARIABLE}={}", far.as_raw_fd()))?;
    let mut environment = vec![channel];
    for variable in PASSED_ON {
        let value = std::env::var(variable).ok();
        environment.extend(value.and_then(|value| CString::new(format!("{variable}={value}")).ok()));
    }

    // SAFETY: this process has one thread, so that the child finds every lock as free as its parent left it.
    #[allow(unsafe_code, reason = "fork has no safe form")]
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(far);
            parcels[sent..].iter().try_for_each(|parcel| near.send(parcel))?;
            Ok(near)
        }
        ForkResult::Child => {
            let _ = fcntl(&far, FcntlArg::F_SETFD(FdFlag::empty()));
            // SAFETY: IMAGE_FD is open for as long as this process lives.
            #[allow(unsafe_code, reason = "the number is fixed by convention, not owned by a value")]
            let image = unsafe { BorrowedFd::borrow_raw(IMAGE_FD) };
            let _ = fcntl(image, FcntlArg::F_SETFD(FdFlag::empty()));
            let _ = execveat(image, c"", &argv, &environment, AtFlags::AT_EMPTY_PATH);
            // SAFETY: _exit runs nothing of this program.
            #[allow(unsafe_code, reason = "a forked child must not run the exit hooks of its parent")]
            unsafe {
                nix::libc::_exit(127)
            }
        }
    }
}

/// The channel that [`start`] made for this process, taken out of the environment; `None` in one that was not started
/// so.
///
/// # Errors
/// When the variable does not name a descriptor that was left open for it.
pub(crate) fn inherited_channel() -> Result<Option<Seqpacket>> {
    let Some(number) = std::env::var_os(CHANNEL_VARIABLE) else { return Ok(None) };
    let invalid =
        || Error::other(format!("{CHANNEL_VARIABLE}={} names no channel", number.to_string_lossy()));
    let number: RawFd = number.to_str().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
    inherited(number).map(|fd| Some(Seqpacket::from(fd))).ok_or_else(invalid)
}

/// Takes over an inherited descriptor, which whatever is executed later no longer gets. `None` when it is not open, or
/// not above the standard ones and the image.
pub(crate) fn inherited(number: RawFd) -> Option<OwnedFd> {
    if number <= IMAGE_FD {
        return None;
    }
    // SAFETY: only borrowed for the call that tells whether it is open.
    #[allow(unsafe_code, reason = "a number from the environment becomes a descriptor")]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is open, and was left open for this process to own; nothing here has opened anything before.
    #[allow(unsafe_code, reason = "a number from the environment becomes a descriptor")]
    Some(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}
