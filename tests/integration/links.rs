//! Links: a private alias that only the linking container has.

use integration_tests::{Attachment, Container, Network, World};
use serde_json::json;

struct Story {
    world: World,
    network: Network,
}

impl Story {
    fn new() -> Self {
        let world = World::new();
        let network = Network::example(&world, "link");
        Self { world, network }
    }

    /// A container called `name` with links of the form `TARGET:ALIAS`.
    #[track_caller]
    fn container(&self, name: &str, links: &[&str]) -> Container {
        let container = self.world.container(name);
        self.network.attach_as(&container, &self.attachment(&container, links));
        container
    }

    fn attachment(&self, container: &Container, links: &[&str]) -> Attachment {
        Attachment::of(container)
            .arg("IgnoreUnknown", "1")
            .arg("CONTAINER_NAME", container.name())
            .capability("links", json!(links))
    }
}

#[test]
fn a_link_is_an_alias_for_the_linking_container_alone() {
    let story = Story::new();
    let target = story.container("mysql", &[]);
    let linking = story.container("web", &["mysql:db"]);
    let other = story.container("other", &[]);
    assert_eq!(linking.resolve("db"), ["172.18.0.2"]);
    assert_eq!(linking.resolve("db.link"), ["172.18.0.2"]);
    linking.run("ping -c 1 -W 30 db").has_line("PING db (172.18.0.2) 56(84) bytes of data.");
    assert!(other.resolve("db").is_empty(), "another container does not have the alias");
    assert!(target.resolve("db").is_empty(), "nor does the target");
}

#[test]
fn a_link_finds_a_target_that_starts_later_and_one_that_restarts() {
    let story = Story::new();
    let linking = story.container("web", &["mysql:db"]);
    assert!(linking.resolve("db").is_empty());
    let target = story.container("mysql", &[]);
    assert_eq!(linking.resolve("db"), ["172.18.0.3"]);

    story.network.detach_as(&target, &story.attachment(&target, &[]));
    story.world.remove_netns("mysql");
    assert!(linking.resolve("db").is_empty());
    story.container("mysql", &[]);
    assert_eq!(linking.resolve("db"), ["172.18.0.4"]);
}

#[test]
fn a_link_shadows_a_real_name_for_the_linking_container_alone() {
    let story = Story::new();
    story.container("mysql", &[]);
    story.container("db", &[]);
    let linking = story.container("web", &["mysql:db"]);
    let other = story.container("other", &[]);
    assert_eq!(linking.resolve("db"), ["172.18.0.2"]);
    assert_eq!(other.resolve("db"), ["172.18.0.3"]);
}

#[test]
fn a_service_is_reached_by_link_and_port() {
    let story = Story::new();
    let target = story.container("mysql", &[]);
    let linking = story.container("web", &["mysql:db"]);
    let _service = target.serve("0.0.0.0:3306");
    assert_eq!(linking.fetch("http://db:3306/"), "db:3306 called by 172.18.0.3");
}
