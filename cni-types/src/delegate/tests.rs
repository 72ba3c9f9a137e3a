use std::path::Path;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;
use crate::{Environment, NetConf};

/// A directory for `CNI_PATH` with one plugin, a shell script.
fn plugin(script: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_program(&directory.path().join("fake"), &format!("#!/bin/sh\n{script}\n"), "755");
    directory
}

/// Another process writes it: what this one has open for writing, the processes that the tests beside start have too,
/// and nobody could execute it until they are programs.
fn write_program(path: &Path, content: &str, mode: &str) {
    let script = "rm -f \"$0\" && printf %s \"$1\" > \"$0\" && chmod \"$2\" \"$0\"";
    let written =
        std::process::Command::new("sh").args(["-c", script]).arg(path).args([content, mode]).status();
    assert!(written.unwrap().success());
}

fn call(conf: &str) -> NetworkCall {
    let env: Environment =
        [("CNI_COMMAND", "CHECK"), ("CNI_ARGS", "A=1"), ("PATH", "/usr/bin:/bin")].into_iter().collect();
    NetworkCall::new(NetConf::parse(Command::Add, conf.as_bytes().to_vec()).unwrap(), env)
}

const CONF: &str = r#"{"cniVersion":"1.0.0","name":"n"}"#;

fn add(script: &str, conf: &str) -> Result<CniResult, Error> {
    added(script, conf).map_err(|failed| failed.error)
}

fn added(script: &str, conf: &str) -> Result<CniResult, NotAdded> {
    let directory = plugin(script);
    let delegate = Delegate::find("fake", &[directory.path().to_owned()]).unwrap();
    delegate.add(&call(conf))
}

#[test]
fn the_first_directory_that_has_the_plugin_counts() {
    let (empty, full, other) = (tempfile::tempdir().unwrap(), plugin(""), plugin(""));
    let path: Vec<PathBuf> = [&empty, &full, &other].map(|directory| directory.path().to_owned()).into();
    assert_eq!(Delegate::find("fake", &path).unwrap().program, full.path().join("fake"));
}

#[test]
fn a_plugin_that_is_not_there_is_named_with_the_path_searched() {
    let directory = plugin("");
    std::fs::create_dir(directory.path().join("directory")).unwrap();
    let path = [directory.path().to_owned(), "/no/such".into()];
    let error = |name| Delegate::find(name, &path).unwrap_err().msg().to_owned();
    let searched = format!("in path [{} /no/such]", directory.path().display());
    assert_eq!(error("x"), format!("failed to find plugin \"x\" {searched}"));
    assert_eq!(error("directory"), format!("failed to find plugin \"directory\" {searched}"));
    assert_eq!(error(""), "no plugin name provided");
    assert_eq!(error("../fake"), "invalid plugin name: ../fake");
}

#[test]
fn the_delegate_gets_our_stdin_and_our_environment_with_its_own_command() {
    let script = r#"read conf
        [ "$conf" = '{"cniVersion":"1.0.0","name":"n"}' ] || exit 9
        [ "$CNI_COMMAND $CNI_ARGS" = "ADD A=1" ] || exit 8
        echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}'"#;
    let result = add(script, CONF).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
}

#[test]
fn a_result_without_version_is_of_the_configurations() {
    let result =
        add(r#"echo '{"ip4":{"ip":"10.0.0.2/24"}}'"#, r#"{"cniVersion":"0.2.0","name":"n"}"#).unwrap();
    assert_eq!(result.ips.len(), 1);
    assert_eq!(add("echo null", CONF).unwrap(), CniResult::default());
}

#[test]
fn a_delegate_that_reads_nothing_blocks_nobody() {
    let conf = format!(r#"{{"cniVersion":"1.0.0","name":"n","filler":"{}"}}"#, "x".repeat(1 << 20));
    add("echo '{}'", &conf).unwrap();
}

#[test]
fn a_plugin_that_cannot_be_executed_is_told() {
    let directory = plugin("echo '{}'");
    let program = directory.path().join("fake");
    let delegate = Delegate::find("fake", &[directory.path().to_owned()]).unwrap();
    let refused = || {
        let NotAdded { error, in_doubt } = delegate.add(&call(CONF)).unwrap_err();
        assert!(!in_doubt);
        error
    };

    let written = std::fs::File::options().append(true).open(&program).unwrap();
    let busy = refused();
    assert_eq!(busy.code(), ErrorCode::TRY_AGAIN_LATER);
    assert_eq!(busy.msg(), format!("execute {}: Text file busy", program.display()));
    drop(written);

    for (content, mode, reason) in [
        ("#!/bin/sh\n", "644", "Permission denied"),
        ("#!/no/such/shell\n", "755", "No such file or directory"),
        ("neither a script nor an image", "755", "Exec format error"),
    ] {
        write_program(&program, content, mode);
        let error = refused();
        assert_eq!(error.code(), ErrorCode::IO_FAILURE, "{error}");
        assert!(error.msg().contains(reason), "{error}");
    }
}

#[test]
fn a_delegate_starts_with_what_it_was_given_and_ignores_no_signal_that_we_ignore() {
    crate::signals::settle();
    // Rust programs ignore SIGPIPE, by its number bit 0x1000; a script that nobody reads from has to end all the same.
    // Bit 0x1000000 is SIGXFSZ.
    let script = r#"ignored=$(awk '/^SigIgn:/ { print $2 }' /proc/$$/status)
        [ $((0x$ignored & 0x1001000)) = 0 ] || exit 1
        [ "$CNI_ARGS$CNI_COMMAND" = A=1ADD ] || exit 2; [ "$(cat)" = '{"cniVersion":"1.0.0","name":"n"}' ] || exit 3
        echo '{}'; echo words >&2"#;
    add(script, CONF).unwrap();
}

#[test]
fn signals_that_the_caller_holds_back_are_not_held_back_from_the_delegate() {
    let ending: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    ending.thread_block().unwrap();
    let result = add("kill -TERM $$; echo '{}'", CONF);
    ending.thread_unblock().unwrap();
    let ended = result.unwrap_err();
    assert!(ended.msg().contains("signal: 15"), "{ended}");
}

#[test]
fn a_delegate_that_nobody_waits_for_is_killed() {
    let directory = plugin("echo $$ > \"$(dirname \"$0\")/pid\"; exec sleep 1000");
    let told = directory.path().join("pid");
    mkfifo(&told, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let delegate = Delegate::find("fake", &[directory.path().to_owned()]).unwrap();
    let running = delegate.start(Command::Add, &call(CONF)).unwrap();
    // Reading a pipe waits until somebody has written to it.
    let pid = std::fs::read_to_string(&told).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    drop(running);
    assert!(!process.exists());
}

#[test]
fn the_delegates_error_comes_through_with_its_code() {
    let error = add(r#"echo '{"code":11,"msg":"no addresses","details":"d"}'; exit 1"#, CONF).unwrap_err();
    assert_eq!(error, Error::new(ErrorCode::TRY_AGAIN_LATER, "no addresses").with_details("d"));
}

#[test]
fn a_delegate_that_fails_without_words_is_reported_in_the_references() {
    let failure = |script| add(script, CONF).unwrap_err();
    assert_eq!(failure("echo oops >&2; exit 1").msg(), "netplugin failed: \"oops\\n\"");
    let silent = failure("kill -9 $$");
    assert!(silent.msg().starts_with("netplugin failed with no error message: signal: 9"), "{silent}");
    let without_code = failure(r#"echo '{"cniVersion": "1.0.0", "msg": "full"}'; exit 1"#);
    assert_eq!((without_code.code(), without_code.msg()), (ErrorCode::UNKNOWN, "full"));
    let without_msg = failure(r#"echo '{"code": 11}'; exit 1"#);
    assert_eq!((without_msg.code(), without_msg.msg()), (ErrorCode::TRY_AGAIN_LATER, ""));
    let empty = failure("echo '{}'; exit 1");
    assert!(empty.msg().ends_with("its diagnostic message \"{}\\n\": neither code nor msg"), "{empty}");
    let junk = failure("echo junk; exit 1");
    assert!(
        junk.msg().starts_with("netplugin failed but error parsing its diagnostic message \"junk\\n\": "),
        "{junk}"
    );
    let no_result = failure("echo junk");
    assert_eq!((no_result.code(), no_result.details()), (ErrorCode::DECODING_FAILURE, "junk\n"));
}

#[test]
fn a_delegate_that_says_what_is_wrong_has_done_nothing_and_any_other_may_have() {
    for (script, in_doubt) in [
        (r#"echo '{"code":11,"msg":"no addresses"}'; exit 1"#, false),
        (r#"echo '{"code":999,"msg":"no addresses"}'; exit 1"#, false),
        (r#"echo '{"msg":"no addresses"}'; exit 1"#, true),
        ("kill -9 $$", true),
        ("echo oops >&2; exit 1", true),
        ("echo junk; exit 1", true),
        ("echo junk", true),
    ] {
        assert_eq!(added(script, CONF).unwrap_err().in_doubt, in_doubt, "{script}");
    }
}

#[test]
fn a_delegate_has_a_moment_to_end_by_itself_when_the_caller_is_asked_to() {
    let signals: SigSet = [Signal::SIGTERM].into_iter().collect();
    signals.thread_block().unwrap();
    raise(Signal::SIGTERM).unwrap();
    let refused = added(r#"echo '{"code":11,"msg":"no addresses"}'; exit 1"#, CONF).unwrap_err();
    let killed = added("exec sleep 1000", CONF).unwrap_err();
    // It would end the tests once it is held back no more.
    assert_eq!(signals.wait().unwrap(), Signal::SIGTERM);
    signals.thread_unblock().unwrap();
    assert_eq!((refused.error.msg(), refused.in_doubt), ("no addresses", false));
    assert!(killed.error.msg().contains("asked to end while") && killed.in_doubt, "{killed:?}");
}
