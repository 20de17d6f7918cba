//! Trees by their mounts, and device rules against a naive reading of them.

use super::*;
use proptest::prelude::*;

#[test]
fn trees_are_found_by_their_mounts() {
    let both = "\
10 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
11 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
12 31 0:30 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
13 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
14 31 0:29 /pods /elsewhere rw - cgroup cgroup rw,cpu,cpuacct
";
    let tree = |mount: &str, controllers: &[&str]| Tree {
        mount: mount.into(),
        controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
    };
    let expected = Trees::Each(vec![
        tree("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
        tree("/sys/fs/cgroup/systemd", &["name=systemd"]),
    ]);
    assert_eq!(Trees::of(both), Some(expected));
    let second = "13 31 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let expected = Trees::One(tree("/sys/fs/cgroup", &[]));
    assert_eq!(Trees::of(second), Some(expected));
    assert_eq!(Trees::of("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
}

#[test]
fn memberships_are_read() {
    let found: Vec<_> =
        memberships("4:memory:/a/b\n1:name=systemd:/\n0::/x:y\nnonsense\n").collect();
    let path = Path::new;
    assert_eq!(
        found,
        [
            ("memory", path("/a/b")),
            ("name=systemd", path("/")),
            ("", path("/x:y"))
        ]
    );
}

/// What the kernel would answer: the instructions as its documentation has them.
fn ask(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let mut registers = [0u64; 11];
    let context = [access << 16 | kind, major, minor];
    let mut at = 0;
    loop {
        let Instruction {
            code,
            registers: r,
            offset,
            immediate,
        } = program[at];
        at += 1;
        let (target, source) = (usize::from(r & 15), usize::from(r >> 4));
        let immediate_32 = immediate.cast_unsigned();
        match code {
            LOAD => registers[target] = u64::from(context[offset as usize / 4]),
            COPY => registers[target] = registers[source] & 0xffff_ffff,
            AND => registers[target] = u64::from(registers[target] as u32 & immediate_32),
            SHIFT_RIGHT => registers[target] = u64::from(registers[target] as u32 >> immediate_32),
            // Compared with the immediate made longer by its sign.
            JUMP_NOT if registers[target] != i64::from(immediate).cast_unsigned() => {
                at += offset as usize;
            }
            JUMP_NOT_THAT if registers[target] != registers[source] => at += offset as usize,
            JUMP_NOT | JUMP_NOT_THAT => {}
            SET => registers[target] = u64::from(immediate_32),
            EXIT => return registers[0] == 1,
            other => panic!("instruction {other:#x}"),
        }
    }
}

proptest! {
    /// The program decides as one who reads the rules from the last to the first.
    #[test]
    fn the_program_says_what_the_rules_do(
        rules in prop::collection::vec((
            any::<bool>(),
            prop::option::of(prop::sample::select(vec![DeviceKind::Block, DeviceKind::Character])),
            prop::option::of(0u32..4), prop::option::of(0u32..4),
            prop::sample::select(vec!["r", "w", "m", "rw", "rwm", "rm"]),
        ), 0..6),
        block in any::<bool>(), access in 1u32..8, major in 0u32..5, minor in 0u32..5,
    ) {
        let rules: Vec<_> = rules.into_iter().map(|(allow, kind, major, minor, access)| {
            // One for all devices has no numbers.
            let numbers = kind.map_or((None, None), |_| (major, minor));
            DeviceRule { allow, kind, major: numbers.0, minor: numbers.1, access: access.to_owned() }
        }).collect();
        let kind = if block { DeviceKind::Block } else { DeviceKind::Character };
        let means = |rule: &&DeviceRule| {
            let bits = [('m', 1), ('r', 2), ('w', 4)];
            let can = |(c, bit): &(char, u32)| access & bit == 0 || rule.access.contains(*c);
            rule.kind.is_none_or(|k| k == kind && bits.iter().all(can))
                && rule.major.is_none_or(|n| n == major)
                && rule.minor.is_none_or(|n| n == minor)
        };
        let expected = rules.iter().rev().find(means).is_some_and(|rule| rule.allow);
        let kind = if block { 1 } else { 2 };
        prop_assert_eq!(ask(&program(&rules), kind, access, major, minor), expected);
    }
}

#[test]
fn rules_of_version_1() {
    let lines: Vec<_> = with_usual(&[
        DeviceRule {
            allow: false,
            kind: None,
            major: None,
            minor: None,
            access: "rwm".into(),
        },
        DeviceRule {
            allow: true,
            kind: Some(DeviceKind::Block),
            major: Some(8),
            minor: None,
            access: "r".into(),
        },
    ])
    .iter()
    .map(line)
    .collect();
    assert_eq!(lines[..3], ["a", "b 8:* r", "c 1:3 rwm"]);
    assert_eq!(lines.last().unwrap(), "c 136:* rwm");
}
