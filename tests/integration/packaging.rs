//! What a release consists of is the same each time it is made, and installed, replaced and removed without a trace,
//! beside the plugins of others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use integration_tests::{Output, Suite, World};

const NAMES: [&str; 5] = ["alias-dns", "bridge", "dnsname", "host-local", "host-local-ipam"];
const DIR: &str = "/run/cni-bin";

fn script(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts")).join(name)
}

/// Runs `scripts/install` on the built binaries, with DIR to install into.
#[track_caller]
fn install(world: &World, options: &[&str]) -> Output {
    let (script, from) = (script("install"), Suite::Ours.dir());
    let mut argv = vec![script.as_os_str(), "--from".as_ref(), from.as_os_str()];
    argv.extend(options.iter().map(|option| option.as_ref() as &std::ffi::OsStr));
    argv.push(DIR.as_ref());
    world.host().command(argv).run()
}

/// The entries of a directory of the world, hidden ones too.
#[track_caller]
fn entries(world: &World, dir: &str) -> Vec<String> {
    let listed = world.host().run(&format!("ls -A {dir}"));
    listed.success().lines().map(str::to_owned).collect()
}

/// What the program says that it is.
#[track_caller]
fn about(world: &World, program: &str) -> String {
    let output = world.host().run(program);
    output.success();
    output.stderr.lines().next().unwrap_or_default().to_owned()
}

#[track_caller]
fn assert_ours(world: &World, dir: &str) {
    for (name, plugin) in [
        ("bridge", "bridge"),
        ("host-local", "host-local-ipam"),
        ("host-local-ipam", "host-local-ipam"),
        ("dnsname", "alias-dns"),
        ("alias-dns", "alias-dns"),
    ] {
        let about = about(world, &format!("{dir}/{name}"));
        assert!(about.starts_with(&format!("CNI {plugin} plugin v")), "{dir}/{name}: {about}");
    }
}

fn foreign(name: &str) -> String {
    format!("#!/bin/sh\necho somebody else\\'s {name} >&2\n")
}

/// Puts a program of somebody else's into the world.
#[track_caller]
fn put_foreign(world: &World, dir: &str, name: &str) {
    world.write_program(&format!("{dir}/{name}"), &foreign(name));
}

#[test]
fn what_is_installed_answers_under_every_name_and_is_gone_once_uninstalled() {
    let world = World::new();
    install(&world, &[]).success();
    assert_ours(&world, DIR);
    install(&world, &[]).success();
    assert_eq!(entries(&world, DIR).len(), NAMES.len() + 1, "the names and the record");
    install(&world, &["--uninstall"]).success();
    assert!(entries(&world, DIR).is_empty());
    let again = install(&world, &["--uninstall"]);
    assert_eq!(again.status, 1);
    assert!(again.stderr.contains("nothing to remove"), "{again}");
}

#[test]
fn a_dry_run_says_everything_and_changes_nothing() {
    let world = World::new();
    let said = install(&world, &["--dry-run"]);
    said.success();
    for name in NAMES {
        assert!(said.stderr.contains(&format!("would have installed {DIR}/{name}")), "{said}");
    }
    assert_ne!(world.host().run(&format!("ls {DIR}")).status, 0);

    install(&world, &[]).success();
    let before = entries(&world, DIR);
    let said = install(&world, &["--uninstall", "--dry-run"]);
    said.success();
    assert!(said.stderr.contains(&format!("would have removed {DIR}/bridge")), "{said}");
    assert_eq!(entries(&world, DIR), before);
}

#[test]
fn somebody_elses_file_is_kept_unless_forced_and_then_put_back() {
    let world = World::new();
    put_foreign(&world, DIR, "bridge");
    put_foreign(&world, DIR, "portmap");
    let refused = install(&world, &[]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("somebody else's bridge;"), "{refused}");
    assert_eq!(entries(&world, DIR), ["bridge", "portmap"]);

    install(&world, &["--force"]).success();
    assert_ours(&world, DIR);
    let backups = entries(&world, DIR).iter().filter(|name| name.starts_with("bridge.backup-")).count();
    assert_eq!(backups, 1);

    install(&world, &["--uninstall"]).success();
    assert_eq!(entries(&world, DIR), ["bridge", "portmap"]);
    assert_eq!(about(&world, &format!("{DIR}/bridge")), "somebody else's bridge");
}

#[test]
fn a_file_that_was_changed_since_is_left_alone() {
    let world = World::new();
    install(&world, &[]).success();
    put_foreign(&world, DIR, "bridge");
    let said = install(&world, &["--uninstall"]);
    said.success();
    assert!(said.stderr.contains(&format!("left {DIR}/bridge alone")), "{said}");
    assert_eq!(entries(&world, DIR), ["bridge"]);
}

#[test]
fn binaries_that_do_not_run_here_are_not_installed() {
    let world = World::new();
    for name in ["bridge", "host-local-ipam", "alias-dns"] {
        put_foreign(&world, "/run/wrong", name);
    }
    let script = script("install");
    let argv = [script.as_os_str(), "--from".as_ref(), "/run/wrong".as_ref(), DIR.as_ref()];
    let refused = world.host().command(argv).run();
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("/run/wrong/bridge does not run on this machine"), "{refused}");
    assert_ne!(world.host().run(&format!("ls {DIR}")).status, 0);
}

/// Makes a release of the built binaries in `out`; without their debug information, which takes long to compress.
#[track_caller]
fn release(world: &World, out: &str) {
    let host = world.host();
    host.run("mkdir -p /run/stripped").success();
    for plugin in ["alias-dns", "bridge", "host-local-ipam"] {
        let binary = Suite::Ours.binary(plugin);
        host.run(&format!("strip -o /run/stripped/{plugin} {}", binary.display())).success();
    }
    let script = script("package");
    let argv =
        [script.as_os_str(), "--binaries".as_ref(), "/run/stripped".as_ref(), "--out".as_ref(), out.as_ref()];
    let home = std::env::var_os("HOME").unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let time = ("SOURCE_DATE_EPOCH", "1735689600");
    host.command(argv).env("HOME", home).env("PATH", path).env(time.0, time.1).run().success();
}

#[test]
fn a_release_is_the_same_whenever_it_is_made_and_its_tarball_installs_itself() {
    let world = World::new();
    release(&world, "/run/first");
    release(&world, "/run/second");
    let sums = world.read("/run/first/SHA256SUMS");
    assert_eq!(sums, world.read("/run/second/SHA256SUMS"));
    assert_eq!(sums.lines().count(), 2, "{sums}");

    let host = world.host();
    host.command([
        "sh",
        "-c",
        "mkdir /run/unpacked && tar -C /run/unpacked --strip-components=1 -xzf /run/first/*.tar.gz",
    ])
    .run()
    .success();
    let owners =
        host.command(["sh", "-c", "tar -tvzf /run/first/*.tar.gz | awk '{ print $2 }' | sort -u"]).run();
    assert_eq!(owners.success(), "0/0\n");
    host.run("grep -q ^musl /run/unpacked/third-party.txt").success();
    host.run(&format!("/run/unpacked/scripts/install {DIR}")).success();
    assert_ours(&world, DIR);
    host.run(&format!("/run/unpacked/scripts/install --uninstall {DIR}")).success();
    assert!(entries(&world, DIR).is_empty());
}

/// A world in which packages can be installed: `/usr` and `/opt` take what is written to them away with the world,
/// and the package database is empty.
#[track_caller]
fn world_with_dpkg() -> World {
    let world = World::new();
    let host = world.host();
    for dir in ["usr", "opt"] {
        host.run(&format!("mkdir -p /run/upper/{dir} /run/layer/{dir}")).success();
        let layers = format!("lowerdir=/{dir},upperdir=/run/upper/{dir},workdir=/run/layer/{dir}");
        host.run(&format!("mount -t overlay overlay -o {layers} /{dir}")).success();
    }
    host.run("rm -rf /usr/lib/cni /opt/cni").success();
    // Links to the machine's own, of which nothing must be read or written here.
    host.run("rm -f /etc/dpkg /var/lib/dpkg").success();
    host.run("mkdir -p /etc/dpkg /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers").success();
    host.run("touch /var/lib/dpkg/status /var/lib/dpkg/available").success();
    world
}

#[track_caller]
fn dpkg(world: &World, action: &str) {
    world.host().command(["sh", "-c", &format!("dpkg --log=/run/dpkg.log {action}")]).run().success();
}

/// A package that has files of our names.
#[track_caller]
fn reference_package(world: &World) {
    put_foreign(world, "/run/reference/usr/lib/cni", "bridge");
    put_foreign(world, "/run/reference/usr/lib/cni", "host-local");
    put_foreign(world, "/run/reference/usr/lib/cni", "portmap");
    let control = "Package: containernetworking-plugins\nVersion: 1\nArchitecture: all\n\
                   Maintainer: nobody <nobody@localhost>\nDescription: stands for the reference plugins\n";
    world.write("/run/reference/DEBIAN/control", control);
    world.host().run("dpkg-deb --root-owner-group --build /run/reference /run/reference.deb").success();
}

#[test]
fn the_debian_package_takes_the_place_of_the_reference_and_gives_it_back() {
    let world = world_with_dpkg();
    reference_package(&world);
    put_foreign(&world, "/opt/cni/bin", "bridge");
    put_foreign(&world, "/opt/cni/bin", "alias-dns");
    release(&world, "/run/dist");
    for ours_first in [false, true] {
        let packages = match ours_first {
            true => ["/run/dist/*.deb", "/run/reference.deb"],
            false => ["/run/reference.deb", "/run/dist/*.deb"],
        };
        for package in packages {
            dpkg(&world, &format!("--install {package}"));
        }
        assert_ours(&world, "/usr/lib/cni");
        assert_ours(&world, "/opt/cni/bin");
        assert_eq!(about(&world, "/usr/lib/cni/bridge.distrib"), "somebody else's bridge");
        assert_eq!(about(&world, "/usr/lib/cni/portmap"), "somebody else's portmap");
        dpkg(&world, "--verify alias-dns-suite");
        dpkg(&world, "--install /run/dist/*.deb");
        assert_ours(&world, "/usr/lib/cni");

        dpkg(&world, "--remove alias-dns-suite");
        assert_eq!(entries(&world, "/usr/lib/cni"), ["bridge", "host-local", "portmap"]);
        assert_eq!(about(&world, "/usr/lib/cni/host-local"), "somebody else's host-local");
        assert_eq!(world.host().run("dpkg-divert --list alias-dns-suite").success(), "");
        assert_eq!(entries(&world, "/opt/cni/bin"), ["alias-dns", "bridge"]);
        assert_eq!(about(&world, "/opt/cni/bin/alias-dns"), "somebody else's alias-dns");
        dpkg(&world, "--remove containernetworking-plugins");
    }
}

/// What `program --help` prints.
#[track_caller]
fn help(world: &World, program: &str) -> String {
    let binary = Suite::Ours.binary(program);
    world.host().command([binary.as_os_str(), "--help".as_ref()]).run().success().to_owned()
}

/// The verbs that the help lists, as lines that begin with the program's name.
fn verbs(help: &str, program: &str) -> BTreeSet<String> {
    let lines = help.lines().filter_map(|line| line.trim_start().strip_prefix(program));
    let verbs = lines.filter_map(|rest| rest.strip_prefix(' ')?.split_whitespace().next());
    verbs.filter(|verb| verb.starts_with(|c: char| c.is_ascii_lowercase())).map(str::to_owned).collect()
}

/// The options that the help names, without their dashes.
fn options(help: &str) -> BTreeSet<&str> {
    let words = help.split(|c: char| c.is_whitespace() || matches!(c, '[' | ']' | ';' | ','));
    words.filter_map(|word| word.strip_prefix("--")).collect()
}

/// What the bash completion offers for the first word after `command`.
#[track_caller]
fn offered_by_bash(world: &World, file: &Path, function: &str, command: &str) -> BTreeSet<String> {
    let line = r#"source "$1"; COMP_WORDS=("$3" ''); COMP_CWORD=1; "$2" "$3" '' "$3"; printf '%s\n' "${COMPREPLY[@]}""#;
    let argv = [
        "bash".as_ref(),
        "-c".as_ref(),
        line.as_ref(),
        "bash".as_ref(),
        file.as_os_str(),
        function.as_ref(),
        command.as_ref(),
    ];
    let output = world.host().command(argv).run();
    output.success().lines().filter(|word| !word.starts_with('-')).map(str::to_owned).collect()
}

#[test]
fn manual_and_completions_know_every_verb_and_option() {
    let world = World::new();
    let packaging = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"));
    for (program, command, function) in [
        ("alias-dns", "alias-dns", "_alias_dns"),
        ("bridge", "cni-bridge", "_cni_bridge"),
        ("host-local-ipam", "host-local-ipam", "_host_local_ipam"),
    ] {
        let help = help(&world, program);
        let (verbs, options) = (verbs(&help, program), options(&help));
        assert!(verbs.len() >= 2 && options.len() >= 3, "{program} --help lists {verbs:?} and {options:?}");
        let bash = packaging.join("completions/bash").join(command);
        assert_eq!(offered_by_bash(&world, &bash, function, command), verbs, "{}", bash.display());
        for (path, before, after) in [
            (format!("man/{command}.8"), ".It Cm ", ""),
            (format!("completions/zsh/_{command}"), "", "\\:"),
            (format!("completions/fish/{command}.fish"), " -a ", " "),
        ] {
            let text = std::fs::read_to_string(packaging.join(&path)).unwrap();
            for verb in &verbs {
                assert!(text.contains(&format!("{before}{verb}{after}")), "{path} lacks {verb}");
            }
        }
        for (path, before) in [
            (format!("man/{command}.8"), "Fl -"),
            (format!("completions/bash/{command}"), "--"),
            (format!("completions/zsh/_{command}"), "--"),
            (format!("completions/fish/{command}.fish"), " -l "),
        ] {
            let text = std::fs::read_to_string(packaging.join(&path)).unwrap();
            for option in &options {
                assert!(text.contains(&format!("{before}{option}")), "{path} lacks --{option}");
            }
        }
    }
}

#[test]
fn every_program_tells_its_version_and_what_it_does_not_understand() {
    let world = World::new();
    for program in ["alias-dns", "bridge", "host-local-ipam"] {
        let typed =
            |word: &str| world.host().command([Suite::Ours.binary(program).as_os_str(), word.as_ref()]).run();
        for option in ["--version", "-V"] {
            assert_eq!(typed(option).success(), format!("{program} {}\n", env!("CARGO_PKG_VERSION")));
        }
        let wrong = typed("frobnicate");
        assert_eq!((wrong.status, wrong.stdout.as_str()), (2, ""), "{wrong}");
        assert!(wrong.stderr.contains("frobnicate"), "{wrong}");
        let binary = Suite::Ours.binary(program);
        let line = "exec \"$0\" --version > /dev/full";
        let argv = ["sh".as_ref(), "-c".as_ref(), line.as_ref(), binary.as_os_str()];
        let unwritten = world.host().command(argv).run();
        assert_eq!(unwritten.status, 1, "{unwritten}");
        assert!(unwritten.stderr.contains("write to stdout: No space left on device"), "{unwritten}");
    }
}

/// It does nothing else then: `scripts/setup` would install packages.
#[test]
fn every_script_says_what_it_does() {
    let world = World::new();
    let scripts = script("");
    let mut asked = 0;
    for entry in scripts.read_dir().unwrap() {
        let path = entry.unwrap().path();
        // One is sourced, and the other is the part of `demo` that runs inside.
        if path.ends_with("lib.sh") || path.ends_with("demo-story") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let head = text.lines().skip(1).map_while(|line| line.strip_prefix('#'));
        let head: Vec<&str> = head.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        for option in ["--help", "-h"] {
            let argv = ["timeout".as_ref(), "20".as_ref(), path.as_os_str(), option.as_ref()];
            let output = world.host().command(argv).run();
            assert_eq!(output.success().lines().collect::<Vec<_>>(), head, "{} {option}", path.display());
            asked += 1;
        }
    }
    assert!(asked >= 20, "asked {asked} times");
}
