//! How a transport was chosen, and why not another.

use std::fmt;

use serde_json::{Value, json};
use zc_core::transport::Unavailable;
use zc_core::wire::Stage;

use crate::policy::Policy;

/// How one candidate ended.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://outcome").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://outcome"), listener.accept())?;
/// use zc::Outcome;
///
/// for candidate in client.report().candidates() {
///     match &candidate.outcome {
///         Outcome::Chosen => println!("{} it is", candidate.transport),
///         Outcome::NotNeeded => {}
///         Outcome::Unavailable(why) => println!("{}: {why}; {}", candidate.transport, why.remedy()),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It carries the connection.
    Chosen,
    /// Something before it in our ranking was chosen.
    NotNeeded,
    /// It can't, for this reason.
    Unavailable(Unavailable),
}

/// One transport that was looked at.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://candidate").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://candidate"), listener.accept())?;
/// let chosen = client.report().candidates().iter().find(|one| one.outcome == zc::Outcome::Chosen);
/// assert_eq!(chosen.map(|one| &*one.transport), Some("mem"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub transport: String,
    /// How far it came.
    pub stage: Stage,
    /// How it ended.
    pub outcome: Outcome,
    /// Of one that was chosen: which of its ways it goes ([`Caps::variant`](zc_core::transport::Caps::variant)).
    pub variant: Option<&'static str>,
    /// What it is called between the peers: which of several of one wire runs is a choice of each side alone.
    wire: String,
}

/// Every candidate, in the order of the ranking.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://report").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://report"), listener.accept())?;
/// let report = client.report();
/// assert_eq!(report.chosen(), "mem");
/// println!("{report}"); // for people
/// println!("{}", report.to_json()); // for programs
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelectionReport {
    candidates: Vec<Candidate>,
}

impl SelectionReport {
    /// How a candidate ended; a new one, which speaks `wire` to the peer, goes to the end.
    pub(crate) fn add(&mut self, transport: &str, wire: &str, stage: Stage, outcome: Outcome) {
        match self.candidates.iter_mut().find(|candidate| candidate.transport == transport) {
            Some(known) => (known.stage, known.outcome) = (stage, outcome),
            None => {
                let (transport, wire) = (transport.to_owned(), wire.to_owned());
                self.candidates.push(Candidate { transport, stage, outcome, variant: None, wire });
            }
        }
    }

    /// The same, for one that is known or speaks what it is called.
    pub(crate) fn set(&mut self, transport: &str, stage: Stage, outcome: Outcome) {
        self.add(transport, transport, stage, outcome);
    }

    /// It carries the connection, in this way.
    pub(crate) fn choose(&mut self, transport: &str, variant: Option<&'static str>) {
        self.set(transport, Stage::Commit, Outcome::Chosen);
        let chosen = self.candidates.iter_mut().find(|candidate| candidate.transport == transport);
        if let Some(chosen) = chosen {
            chosen.variant = variant;
        }
    }

    /// Whether something ranked above `transport` can't be had, although policy allows it and this link
    /// could have had it, or policy asks for it by name. Another engine for the same wire is missed only by name: with the
    /// peer nothing changes.
    pub(crate) fn lost_above(&self, transport: &str, policy: &Policy) -> bool {
        let wire = self.wire_of(transport);
        let above = self.candidates.iter().take_while(|candidate| candidate.transport != transport);
        let missed = above.filter(|candidate| candidate.wire != wire || policy.names(&candidate.transport));
        missed.into_iter().any(|candidate| match &candidate.outcome {
            Outcome::Unavailable(Unavailable::ForbiddenByPolicy) => false,
            Outcome::Unavailable(Unavailable::NotCompiled { .. }) => policy.names(&candidate.transport),
            Outcome::Unavailable(why) => !why.is_expected() || policy.names(&candidate.transport),
            // It could be had, but the peer put something else first.
            Outcome::NotNeeded => true,
            Outcome::Chosen => false,
        })
    }

    fn wire_of<'a>(&'a self, transport: &'a str) -> &'a str {
        let known = self.candidates.iter().find(|candidate| candidate.transport == transport);
        known.map_or(transport, |candidate| &candidate.wire)
    }

    /// What we rank above `transport`, and nothing was said about, is not tried before it: so the peer wants it. Of
    /// engines for the same wire the peer knows nothing.
    pub(crate) fn outranked(&mut self, transport: &str) {
        let wire = self.wire_of(transport).to_owned();
        let above = self.candidates.iter_mut().take_while(|candidate| candidate.transport != transport);
        for candidate in above.filter(|c| c.outcome == Outcome::NotNeeded && c.wire != wire) {
            let why = Unavailable::OutrankedByPeer;
            (candidate.stage, candidate.outcome) = (Stage::Offers, Outcome::Unavailable(why));
        }
    }

    /// Gives every candidate that nothing was said about this end.
    pub(crate) fn close(&mut self, stage: Stage, why: &Unavailable) {
        for candidate in self.candidates.iter_mut().filter(|c| c.outcome == Outcome::NotNeeded) {
            (candidate.stage, candidate.outcome) = (stage, Outcome::Unavailable(why.clone()));
        }
    }

    /// The furthest stage that a candidate which can't be had came to.
    pub(crate) fn stage(&self) -> Stage {
        let lost = self.candidates.iter().filter(|c| matches!(c.outcome, Outcome::Unavailable(_)));
        lost.map(|candidate| candidate.stage).max().unwrap_or(Stage::Offers)
    }

    /// All that was looked at.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The chosen transport's name; empty when there is none.
    pub fn chosen(&self) -> &str {
        let chosen = self.candidates.iter().find(|candidate| candidate.outcome == Outcome::Chosen);
        chosen.map_or("", |candidate| candidate.transport.as_str())
    }

    /// `{"chosen": …, "candidates": [{"transport", "stage", "outcome", "variant"?, "reason"?, "detail"?, "remedy"?}]}`:
    /// the last three where the outcome is `unavailable`.
    pub fn to_json(&self) -> Value {
        let candidates: Vec<Value> = self.candidates.iter().map(Candidate::to_json).collect();
        json!({ "chosen": self.chosen(), "candidates": candidates })
    }
}

impl Candidate {
    fn to_json(&self) -> Value {
        let mut value = json!({ "transport": self.transport, "stage": self.stage.to_string() });
        match &self.outcome {
            Outcome::Chosen => {
                value["outcome"] = "chosen".into();
                if let Some(variant) = self.variant {
                    value["variant"] = variant.into();
                }
            }
            Outcome::NotNeeded => value["outcome"] = "not_needed".into(),
            Outcome::Unavailable(why) => {
                value["outcome"] = "unavailable".into();
                value["reason"] = why.code().into();
                value["detail"] = why.to_string().into();
                value["remedy"] = why.remedy().into();
            }
        }
        value
    }
}

impl fmt::Display for SelectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, candidate) in self.candidates.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            let stage = candidate.stage.to_string();
            write!(f, "{:<6} {stage:<12} ", candidate.transport)?;
            match &candidate.outcome {
                Outcome::Chosen => match candidate.variant {
                    Some(variant) => write!(f, "chosen: {variant}")?,
                    None => f.write_str("chosen")?,
                },
                Outcome::NotNeeded => f.write_str("not needed")?,
                Outcome::Unavailable(why) => write!(f, "unavailable: {why}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let mut report = SelectionReport::default();
        report.set("shm", Stage::Offers, Outcome::Unavailable(Unavailable::ForbiddenByPolicy));
        report.choose("tcp", Some("by pigeon"));
        report.set("rdma", Stage::Offers, Outcome::NotNeeded);
        let policy = Policy::default();
        assert!(!report.lost_above("tcp", &policy), "what policy forbids is not missed");
        assert!(report.lost_above("other", &policy), "what stands above it and was not tried");
        report.outranked("tcp");
        assert_eq!(report.candidates()[2].outcome, Outcome::NotNeeded, "it ranks below");
        report.outranked("other");
        assert_eq!(report.candidates()[2].outcome, Outcome::Unavailable(Unavailable::OutrankedByPeer));
        report.candidates.swap(1, 2);
        report.set("rdma", Stage::Offers, Outcome::Unavailable(Unavailable::NoDevice));
        assert!(report.lost_above("tcp", &policy) && !report.lost_above("rdma", &policy));
        assert_eq!(report.stage(), Stage::Offers);
        assert_eq!(report.chosen(), "tcp");
        let text = report.to_string();
        assert!(text.contains("no_device; remedy: attach a device"), "{text}");
        assert!(text.contains("chosen: by pigeon"), "{text}");
        assert_eq!(text.lines().count(), 3);
        let json = report.to_json();
        assert_eq!(json["chosen"], "tcp");
        assert_eq!(json["candidates"][1]["reason"], "no_device");
        assert_eq!(json["candidates"][2]["variant"], "by pigeon");
    }

    #[test]
    fn an_engine_of_the_same_wire_is_missed_only_when_asked_for_by_name() {
        let mut report = SelectionReport::default();
        report.add("uring", "tcp", Stage::Offers, Outcome::Unavailable(Unavailable::NoDevice));
        report.add("tcp", "tcp", Stage::Commit, Outcome::Chosen);
        assert!(!report.lost_above("tcp", &Policy::default()));
        assert!(report.lost_above("tcp", &Policy::default().prefer(["uring"])));
        assert!(report.lost_above("tcp", &Policy::default().with_override("uring,tcp").unwrap()));
        report.set("uring", Stage::Offers, Outcome::NotNeeded);
        report.outranked("tcp");
        assert_eq!(report.candidates()[0].outcome, Outcome::NotNeeded, "the peer does not rank engines");
        report.outranked("other");
        assert_ne!(report.candidates()[0].outcome, Outcome::NotNeeded);
    }

    #[test]
    fn what_is_no_defect_is_missed_only_when_asked_for_by_name() {
        let named = Policy::default().prefer(["shm"]);
        let needs = "a Unix socket";
        for why in [Unavailable::DifferentHost, Unavailable::NotApplicable { needs }] {
            let mut report = SelectionReport::default();
            report.set("shm", Stage::Offers, Outcome::Unavailable(why));
            report.set("tcp", Stage::Commit, Outcome::Chosen);
            assert!(!report.lost_above("tcp", &Policy::default()));
            assert!(report.lost_above("tcp", &named));
            report.set("shm", Stage::Join, Outcome::Unavailable(Unavailable::DifferentNetns));
            assert!(report.lost_above("tcp", &Policy::default()), "that can be mended");
            assert_eq!(report.stage(), Stage::Join);
        }
    }
}
