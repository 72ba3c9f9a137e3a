//! A kubelet without an API server: static pods, from a directory, over containerd 2.4.

use integration_tests::Running;
use serde_json::Value;

use super::Site;

const CONFIGURATION: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /run/kubelet/manifests
containerRuntimeEndpoint: unix:///run/ctd/sock
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
address: 127.0.0.1
readOnlyPort: 0
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
clusterDNS: [10.244.0.1]
clusterDomain: pods.local
resolvConf: /etc/resolv.conf
podLogsDir: /run/kubelet/logs
volumePluginDir: /run/kubelet/plugins
evictionHard: { memory.available: 1Mi }
fileCheckFrequency: 1s
syncFrequency: 5s
";

/// What a kubelet sets for the whole machine; it is shown files of the site in their place.
const MACHINE_WIDE: [(&str, &str); 3] =
    [("vm/overcommit_memory", "1"), ("kernel/panic", "10"), ("kernel/panic_on_oops", "1")];

/// A kubelet that runs on a site, as node `node1`.
pub(crate) struct Kubelet<'a> {
    site: &'a Site,
    daemon: Running,
}

impl<'a> Kubelet<'a> {
    /// Starts one over the containerd of the site.
    #[track_caller]
    pub(crate) fn start(site: &'a Site) -> Self {
        site.write("/run/kubelet/config.yaml", CONFIGURATION);
        site.write("/run/kubelet/manifests/.keep", "");
        for (switch, value) in MACHINE_WIDE {
            let shown = format!("/run/kubelet/switches/{switch}");
            site.write(&shown, value);
            site.host().run(&format!("mount --bind {shown} /proc/sys/{switch}")).success();
        }
        let kubelet = Site::installed("kubelet");
        let line = format!(
            "exec {} --config /run/kubelet/config.yaml --root-dir /run/kubelet/root --cert-dir /run/kubelet/pki \
             --hostname-override node1 >/run/kubelet/log 2>&1",
            kubelet.display()
        );
        let daemon = site.host().command(["sh", "-c", &line]).start();
        Self { site, daemon }
    }

    /// Puts a static pod into the directory, or changes it.
    pub(crate) fn apply(&self, name: &str, pod: &Value) {
        // Written aside, so that no half of it is read.
        let aside = format!("/run/kubelet/{name}.json");
        self.site.write(&aside, pod.to_string());
        self.site.host().run(&format!("mv {aside} /run/kubelet/manifests/{name}.json")).success();
    }

    /// Takes a static pod out of the directory.
    pub(crate) fn delete(&self, name: &str) {
        self.site.host().run(&format!("rm /run/kubelet/manifests/{name}.json")).success();
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.site.read("/run/kubelet/log")
    }

    /// Ends it; its pods live on.
    pub(crate) fn stop(self) {
        self.daemon.kill();
        self.daemon.wait();
    }
}
