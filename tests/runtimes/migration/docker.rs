//! Docker's default bridge.

use integration_tests::{Network, Outside};

use crate::support::{Dockerd, Site};

#[test]
fn bridge_that_docker_left_serves_our_containers_on_its_addresses() {
    let site = Site::new();
    let outside = site.outside();
    let docker = Dockerd::start(&site);
    docker.run("c0", "");
    docker.ok("rm --force c0");
    docker.stop();
    let network = Network::example(&site, "docker0");
    let (c1, c2) = (site.container("c1"), site.container("c2"));
    let first = network.attach(&c1);
    assert_eq!(first["ips"][0]["address"], "172.17.0.2/16", "{first}");
    assert_eq!(first["ips"][0]["gateway"], "172.17.0.1", "{first}");
    network.attach(&c2);
    for container in [&c1, &c2] {
        for target in ["172.17.0.1", "172.17.0.2", "172.17.0.3", Outside::ADDRESS] {
            assert!(container.reaches(target), "{} to {target}", container.name());
        }
    }
    // From the outside the host's address is all that is seen of them.
    let _server = outside.space().serve("0.0.0.0:80");
    let seen = c1.fetch(&format!("http://{}/", Outside::ADDRESS));
    assert!(seen.ends_with(&format!("called by {}", Outside::HOST)), "{seen}");
    network.detach(&c1);
    network.detach(&c2);
    let links = site.host().run("ip -o link show master docker0");
    assert_eq!(links.success(), "", "ports are left");
}
