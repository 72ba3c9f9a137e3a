//! podman 4 of an ordinary user: the plugins run in a user namespace and a network namespace of podman's own, where
//! neither `/run` nor `/var/lib` is the host's.

use integration_tests::wait_until;

use crate::support::{IMAGE, Podman, Site};

#[test]
fn containers_of_an_ordinary_user_find_each_other_and_the_host_keeps_nothing() {
    let site = Site::new();
    let podman = Podman::of_a_user(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.ok(&format!(
        "run --detach --name c1 --network testnet --network-alias centos-1 --publish 8080:80 {IMAGE} \
         httpd -f -p 80 -h /www"
    ));
    podman.run("c2", "--network testnet --network-alias centos-2");
    for name in ["centos-1", "c1", "c1.dns.podman"] {
        podman
            .exec("c2", &format!("ping -c 1 -W 30 {name}"))
            .has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    }
    podman.exec("c1", "ping -c 1 -W 30 centos-2").has_line("64 bytes from c2.dns.podman (10.89.0.3)");
    let page = wait_until("the published port answers", || {
        let output = site.host().run("curl --silent --max-time 5 http://127.0.0.1:8080/");
        (output.status == 0).then_some(output.stdout)
    });
    assert_eq!(page.trim(), "It works!");
    podman.ok("restart --time 0 c1");
    podman.exec("c2", "ping -c 1 -W 30 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.4)");
    podman.remove_all(&["testnet"]);
    let leases = site.host().run("find /var/lib/box /run/user -path *networks/testnet/10.*");
    assert_eq!(leases.success(), "", "leases are left");
    // Ends the process that keeps the user's namespaces.
    podman.ok("system migrate");
    site.assert_nothing_is_left(&[]);
}
