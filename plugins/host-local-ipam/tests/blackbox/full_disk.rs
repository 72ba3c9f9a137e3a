//! Disks that are full or read-only, each mounted in a namespace that ends with the test's command.

use std::process::Output;

use crate::calls::{Network, in_mount_namespace, ours};

/// Runs `script` in a mount namespace with a call of ADD for `c1` prepared: `$1` is the data directory, `$2` the
/// program, and stdin the configuration.
fn run(network: &Network, script: &str) -> Output {
    let mut command = in_mount_namespace(script);
    network.prepare(&mut command, "ADD", "c1");
    std::fs::create_dir_all(network.data_dir()).unwrap();
    let output = command.arg(network.data_dir()).arg(ours()).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_full_disk_is_a_clear_error_and_takes_nothing() {
    let network = Network::new("10.8.0.0/24");
    let script = r#"
        mount -t tmpfs -o size=64k none "$1"
        mkdir "$1/net1"
        dd if=/dev/zero of="$1/fill" bs=1k count=128 2>/dev/null || true
        if "$2"; then echo unexpected success; fi
        echo; find "$1/net1" -type f ! -name lock
        rm "$1/fill"
        CNI_COMMAND=VERSION "$2"
    "#;
    let printed = text(&run(&network, script));
    let (error, rest) = printed.split_once("}\n").unwrap();
    assert!(error.contains("\"code\": 5,") && error.contains("No space left on device"), "{printed}");
    assert!(rest.starts_with("{\"cniVersion\""), "{printed}");
}

#[test]
fn a_disk_without_room_for_another_file_is_a_clear_error_and_takes_nothing() {
    let network = Network::new("10.8.0.0/24");
    // Room for the directories and the lock, not for a lease.
    let script = r#"
        mount -t tmpfs -o nr_inodes=4 none "$1"
        mkdir "$1/net1"; touch "$1/net1/lock"
        if "$2"; then echo unexpected success; fi
        echo; find "$1/net1" -type f ! -name lock
    "#;
    let printed = text(&run(&network, script));
    assert!(printed.contains("\"code\": 5,") && printed.contains("No space left on device"), "{printed}");
    assert!(printed.ends_with("}\n"), "{printed}");
}

#[test]
fn a_disk_without_room_for_the_lock_keeps_no_del_from_its_end() {
    let network = Network::new("10.8.0.0/24");
    // Room for the root and one directory.
    let script = r#"
        conf=$(cat)
        mount -t tmpfs -o nr_inodes=2 none "$1"
        echo "$conf" | "$2" && echo unexpected success
        echo "$conf" | CNI_COMMAND=DEL "$2" && echo " nothing to release"
    "#;
    let printed = text(&run(&network, script));
    assert!(printed.contains("\"code\": 5,") && printed.contains("No space left on device"), "{printed}");
    assert!(printed.ends_with("} nothing to release\n"), "{printed}");
}

#[test]
fn a_disk_that_tells_no_size_is_not_full() {
    let network = Network::new("10.8.0.0/24");
    let script = r#"
        conf=$(cat)
        for kind in 'ramfs' 'tmpfs -o size=0,nr_inodes=0'; do
            mount -t $kind none "$1"
            for verb in ADD STATUS DEL; do
                echo "$conf" | CNI_COMMAND=$verb "$2" >"$1/answer" && echo "$kind $verb" || cat "$1/answer"
            done
        done
    "#;
    let printed = text(&run(&network, script));
    let lines: Vec<&str> = printed.lines().collect();
    let expected = ["ramfs", "tmpfs -o size=0,nr_inodes=0"]
        .map(|kind| ["ADD", "STATUS", "DEL"].map(|verb| format!("{kind} {verb}")));
    assert_eq!(lines, expected.concat(), "{printed}");
}

#[test]
fn a_limit_of_the_size_of_files_fails_what_it_leaves_no_room_for() {
    let network = Network::new("10.8.0.0/24");
    // Half a KiB a block: none for a lease, and then one, which is too little for the index only.
    let script = r#"
        conf=$(cat)
        (ulimit -f 0; echo "$conf" | "$2") && echo unexpected success
        echo; find "$1" -type f ! -name lock
        (ulimit -f 1; echo "$conf" | "$2" >/dev/null) && find "$1/net1" -name "10.*" -printf "leased %f\\n"
    "#;
    let printed = text(&run(&network, script));
    assert!(printed.contains("\"code\": 5,") && printed.contains("File too large"), "{printed}");
    assert!(printed.ends_with("}\nleased 10.8.0.2\n"), "{printed}");
}

#[test]
fn a_read_only_disk_is_a_clear_error_for_add_and_known_to_status() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "other").ok();
    let before = network.files();
    let script = r#"
        conf=$(cat)
        mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"
        for verb in ADD STATUS CHECK; do
            echo "$conf" | CNI_COMMAND=$verb CNI_CONTAINERID=other2 "$2" && echo unexpected success || echo " $verb"
        done
        echo "$conf" | CNI_COMMAND=CHECK CNI_CONTAINERID=other "$2" && echo "checked"
        echo "$conf" | CNI_COMMAND=DEL CNI_CONTAINERID=other2 "$2" && echo "nothing to release"
    "#;
    let printed = text(&run(&network, script));
    let answers: Vec<&str> = printed.split("} ").collect();
    assert!(answers[0].contains("\"code\": 5,") && answers[0].contains("Read-only file system"), "{printed}");
    assert!(
        answers[1].contains("\"code\": 50,") && answers[1].contains("Read-only file system"),
        "{printed}"
    );
    assert!(answers[2].contains("Failed to find address added by container other2"), "{printed}");
    assert!(printed.ends_with("checked\nnothing to release\n"), "{printed}");
    assert_eq!(network.files(), before);
}
