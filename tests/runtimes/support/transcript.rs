//! What was asked of a system and what it answered, as a text that stands among the fixtures.

use std::fmt::Write as _;
use std::path::Path;

use integration_tests::{Cmd, Output, Outside, Running, wait_until};

use super::Site;

/// Where the server outside logs what it is asked.
const LOG: &str = "/run/upstream.log";

/// What every `dig` of a transcript is told: to leave out what is random, and to try nothing twice.
const DIG: &str = "dig +nocmd +noquestion +nocookie +time=5 +tries=1";

/// What `dig` says that differs from run to run.
const OF_THIS_RUN: [&str; 4] = [";; Query time", ";; SERVER", ";; WHEN", ";; Got answer"];

/// A session: commands with who ran them, what they printed, and what the host's own name server was asked meanwhile.
pub(crate) struct Transcript<'a> {
    site: &'a Site,
    upstream: Running,
    asked: usize,
    steps: usize,
    text: String,
    concealed: Vec<(String, String)>,
}

impl<'a> Transcript<'a> {
    /// Starts one, headed by what it is of and the versions that these commands print, with a name server outside that
    /// knows no name at all.
    #[track_caller]
    pub(crate) fn start(site: &'a Site, title: &str, versions: &[&str]) -> Self {
        let upstream = site.outside().space().start(&format!(
            "dnsmasq --keep-in-foreground --no-resolv --no-hosts --user=root --conf-file=/dev/null --pid-file= \
             --bind-interfaces --listen-address={} --log-queries --log-facility={LOG} --address=/#/",
            Outside::ADDRESS
        ));
        let mut text = format!(
            "# {title}\n# Made by `scripts/test others` for the table in plugins/alias-dns/README.md.\n#\n# Versions:\n"
        );
        for version in versions {
            let printed = site.host().run(version);
            let line = printed.stdout.lines().chain(printed.stderr.lines()).next().unwrap_or_default();
            let _infallible = writeln!(text, "#   {}: {line}", version.rsplit('/').next().unwrap_or(version));
        }
        let _infallible = write!(
            text,
            "#\n# dig is `{DIG}`, run in the container's network namespace.\n\
             # upstream: is what the host's own name server was asked meanwhile. It says of every name that there is none.\n\
             # Left out: empty lines, and what differs from run to run.\n"
        );
        let mut transcript = Self { site, upstream, asked: 0, steps: 0, text, concealed: Vec::new() };
        wait_until("the server outside answers", || {
            let probe = site.host().run(&format!("dig +time=1 +tries=1 @{} ready", Outside::ADDRESS));
            probe.stdout.contains("status: NXDOMAIN").then_some(())
        });
        transcript.asked_upstream();
        transcript
    }

    /// Begins what shows a row of the table.
    pub(crate) fn row(&mut self, title: &str) {
        let _infallible = write!(self.text, "\n== {title}\n");
    }

    /// Shows `random`, which is another one in each run, as `shown` from now on.
    pub(crate) fn conceal(&mut self, random: &str, shown: &str) {
        self.concealed.push((random.to_owned(), shown.to_owned()));
    }

    /// Runs a command, and notes it as typed by `who`.
    #[track_caller]
    pub(crate) fn run(&mut self, who: &str, line: &str, command: Cmd) -> Output {
        let output = command.run();
        let mut lines = vec![format!("{who}$ {line}")];
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            if !line.trim().is_empty() && !OF_THIS_RUN.iter().any(|start| line.starts_with(start)) {
                lines.push(line.split(", id: ").next().unwrap_or(line).trim_end().to_owned());
            }
        }
        if output.status != 0 {
            lines.push(format!("exit status {}", output.status));
        }
        lines.extend(self.asked_upstream());
        let mut text = lines.join("\n");
        for (random, shown) in &self.concealed {
            text = text.replace(random, shown);
        }
        let _infallible = writeln!(self.text, "{text}");
        output
    }

    /// Notes a command that `who` typed, without what it printed.
    pub(crate) fn note(&mut self, who: &str, line: &str) {
        let _infallible = writeln!(self.text, "{who}$ {line}");
    }

    /// Asks a DNS question from the network namespace `netns`, which is noted as `who`'s.
    #[track_caller]
    pub(crate) fn dig(&mut self, who: &str, netns: &str, question: &str) {
        let words = format!("nsenter --net={netns} {DIG} {question}");
        self.run(who, &format!("dig {question}"), self.site.host().command(words.split_whitespace()));
    }

    /// What the server outside was asked since the last step. A question of our own marks the end: what stands before
    /// it in the log was asked before.
    fn asked_upstream(&mut self) -> Vec<String> {
        self.steps += 1;
        let mark = format!("end-of-step-{}", self.steps);
        self.site.host().run(&format!("dig +time=5 @{} {mark}", Outside::ADDRESS)).success();
        let log = wait_until("the log of the server outside has the mark", || {
            let log = self.site.read(LOG);
            log.contains(&mark).then_some(log)
        });
        // dnsmasq: query[TXT] n1 from 203.0.113.1
        let queries: Vec<&str> =
            log.lines().filter_map(|line| Some(line.split_once(": query[")?.1)).collect();
        let new = queries.iter().skip(self.asked).filter(|query| !query.contains("end-of-step-"));
        self.asked = queries.len();
        new.filter_map(|query| query.split_once(" from "))
            .map(|(query, _)| format!("upstream: {}", query.replace(']', "")))
            .collect()
    }

    /// Writes the fixture `name`.
    #[track_caller]
    pub(crate) fn save(self, name: &str) {
        self.upstream.kill();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        std::fs::write(&path, self.text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }
}
