//! What the exports of one Service in several sites come to, and where they conflict
//! (KEP-1645, "Constraints and Conflict Resolution"). Pure.
//!
//! The oldest export decides; of two as old, the one whose site is first by name. Ports are
//! put together: what is only in a younger export is added.

use crate::exported::Exported;
use crate::kinds::{Port, ServiceImportSpec};
use std::collections::{BTreeMap, BTreeSet};

/// One site's export.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The site's name.
    pub site: &'a str,
    /// What it tells.
    pub exported: &'a Exported,
}

/// A property that exports do not agree on. Named as the reasons of the Conflict condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Conflict {
    PortConflict,
    TypeConflict,
    SessionAffinityConflict,
    SessionAffinityConfigConflict,
    AnnotationsConflict,
    LabelsConflict,
    InternalTrafficPolicyConflict,
    TrafficDistributionConflict,
}

/// What the exports come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Without addresses.
    pub spec: ServiceImportSpec,
    /// Of the import.
    pub labels: BTreeMap<String, String>,
    /// Of the import.
    pub annotations: BTreeMap<String, String>,
    /// Where they do not agree.
    pub conflicts: BTreeSet<Conflict>,
    /// The site whose export decides.
    pub winner: String,
}

/// Puts exports together; `None` when there is none.
pub fn merge(sources: &[Source<'_>]) -> Option<Merged> {
    let mut sources = sources.to_vec();
    sources.sort_by_key(|s| (s.exported.created, s.site));
    let oldest = sources.first()?.exported;
    let mut conflicts = BTreeSet::new();
    for source in &sources[1..] {
        let e = source.exported;
        let mut differs = |conflict, differs: bool| {
            if differs {
                conflicts.insert(conflict);
            }
        };
        differs(Conflict::TypeConflict, e.type_ != oldest.type_);
        differs(Conflict::PortConflict, !same_ports(&e.ports, &oldest.ports));
        let affinity = e.session_affinity != oldest.session_affinity;
        differs(Conflict::SessionAffinityConflict, affinity);
        let config = e.session_affinity_config != oldest.session_affinity_config;
        differs(Conflict::SessionAffinityConfigConflict, config && !affinity);
        let policy = e.internal_traffic_policy != oldest.internal_traffic_policy;
        differs(Conflict::InternalTrafficPolicyConflict, policy);
        let distribution = e.traffic_distribution != oldest.traffic_distribution;
        differs(Conflict::TrafficDistributionConflict, distribution);
        differs(Conflict::LabelsConflict, e.labels != oldest.labels);
        let annotations = e.annotations != oldest.annotations;
        differs(Conflict::AnnotationsConflict, annotations);
    }
    Some(Merged {
        spec: ServiceImportSpec {
            ports: ports(&sources),
            ips: Vec::new(),
            type_: oldest.type_,
            session_affinity: oldest.session_affinity.clone(),
            session_affinity_config: oldest.session_affinity_config.clone(),
            internal_traffic_policy: oldest.internal_traffic_policy.clone(),
            traffic_distribution: oldest.traffic_distribution.clone(),
        },
        labels: oldest.labels.clone(),
        annotations: oldest.annotations.clone(),
        conflicts,
        winner: sources[0].site.to_owned(),
    })
}

impl Merged {
    /// The reason and message of the Conflict condition, if there is a conflict.
    pub fn conflict(&self) -> Option<(String, String)> {
        let names: Vec<String> = self.conflicts.iter().map(|c| format!("{c:?}")).collect();
        (!names.is_empty()).then(|| {
            let message = format!(
                "exports differ; that of site {} decides, being the oldest",
                self.winner
            );
            (names.join(","), message)
        })
    }
}

fn same_ports(a: &[Port], b: &[Port]) -> bool {
    let set = |ports: &[Port]| ports.iter().cloned().collect::<BTreeSet<_>>();
    set(a) == set(b)
}

/// All ports, each name and each number of a protocol once, the older export's first.
fn ports(sources: &[Source<'_>]) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for port in sources.iter().flat_map(|s| &s.exported.ports) {
        let taken = ports
            .iter()
            .any(|p| p.name == port.name || p.protocol == port.protocol && p.port == port.port);
        if !taken {
            ports.push(port.clone());
        }
    }
    ports
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kinds::ImportType;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write as _;

    pub(crate) fn port(name: &str, port: i32) -> Port {
        Port {
            name: name.into(),
            protocol: "TCP".into(),
            app_protocol: None,
            port,
        }
    }

    pub(crate) fn export(created: i64, ports: Vec<Port>) -> Exported {
        Exported {
            created,
            type_: ImportType::ClusterSetIP,
            ports,
            session_affinity: None,
            session_affinity_config: None,
            internal_traffic_policy: None,
            traffic_distribution: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ready: 1,
            weight: 1,
            hosts: Vec::new(),
            target_ports: BTreeMap::new(),
        }
    }

    fn check(exports: &[(&str, Exported)], expected: Expect) {
        let sources: Vec<_> = exports
            .iter()
            .map(|(site, exported)| Source { site, exported })
            .collect();
        let merged = merge(&sources).unwrap();
        let mut text = format!("{:?} by {}\n", merged.spec.type_, merged.winner);
        for p in &merged.spec.ports {
            writeln!(text, "{} {}", p.name, p.port).unwrap();
        }
        if let Some((reason, _)) = merged.conflict() {
            writeln!(text, "{reason}").unwrap();
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn the_same_export_everywhere_has_no_conflict() {
        let one = || export(5, vec![port("http", 80)]);
        check(
            &[("b", one()), ("a", one())],
            expect![[r#"
                ClusterSetIP by a
                http 80
            "#]],
        );
    }

    #[test]
    fn the_oldest_decides_and_ports_are_put_together() {
        let mut headless = export(4, vec![port("http", 8080), port("admin", 9000)]);
        headless.type_ = ImportType::Headless;
        headless.session_affinity = Some("ClientIP".into());
        let younger = export(
            9,
            vec![port("http", 80), port("metrics", 9000), port("grpc", 50)],
        );
        check(
            &[("a", younger), ("b", headless)],
            expect![[r#"
                Headless by b
                http 8080
                admin 9000
                grpc 50
                PortConflict,TypeConflict,SessionAffinityConflict
            "#]],
        );
    }

    proptest! {
        /// Every site comes to the same, in whatever order it hears of the others.
        #[test]
        fn all_sites_agree(
            exports in prop::collection::vec((0i64..3, prop::collection::vec((0u8..3, 1i32..4), 0..4)), 1..5),
            rotate in 0usize..5,
        ) {
            let exports: Vec<_> = exports.into_iter().enumerate().map(|(i, (created, ports))| {
                let ports = ports.into_iter().map(|(n, p)| port(&format!("p{n}"), p)).collect();
                (format!("site-{i}"), export(created, ports))
            }).collect();
            let mut sources: Vec<_> = exports.iter().map(|(site, exported)| Source { site, exported }).collect();
            let merged = merge(&sources).unwrap();
            let by = rotate % sources.len();
            sources.rotate_left(by);
            prop_assert_eq!(merge(&sources).unwrap(), merged.clone());
            let names: BTreeSet<_> = merged.spec.ports.iter().map(|p| &p.name).collect();
            prop_assert_eq!(names.len(), merged.spec.ports.len());
        }
    }
}
