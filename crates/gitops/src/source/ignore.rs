//! Files that are left out, by rules as `.gitignore` has them.

use gix::bstr::ByteSlice as _;
use gix::glob::pattern::{Case, Mode};
use gix::glob::{Pattern, wildmatch};

/// The file of a source that adds rules.
pub(crate) const FILE: &str = ".sourceignore";

/// What is left out when the spec says nothing: what no build reads.
const DEFAULT: &str = "\
.git/
.gitignore
.gitmodules
.gitattributes
*.jpg
*.jpeg
*.gif
*.png
*.wmv
*.flv
*.tar.gz
*.zip
.github/
.circleci/
.travis.yml
.gitlab-ci.yml
appveyor.yml
.drone.yml
cloudbuild.yaml
codeship-services.yml
codeship-steps.yml
.goreleaser.yml
.sops.yaml
.flux.yaml
";

/// Rules; the last that fits counts.
#[derive(Clone, Debug)]
pub(crate) struct Rules(Vec<Pattern>);

impl Rules {
    /// Those of a spec, or the default ones.
    pub(crate) fn new(spec: Option<&str>) -> Self {
        let mut rules = Self(Vec::new());
        rules.add(spec.unwrap_or(DEFAULT));
        rules
    }

    /// More rules, which count more.
    pub(crate) fn add(&mut self, text: &str) {
        self.0.extend(
            text.lines()
                .map(str::trim_end)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .filter_map(|line| Pattern::from_bytes(line.as_bytes())),
        );
    }

    /// Whether a file is left out; so is all below a folder that is.
    pub(crate) fn leave_out(&self, path: &str) -> bool {
        let folders = path.match_indices('/').map(|(at, _)| (&path[..at], true));
        folders
            .chain([(path, false)])
            .any(|(path, is_dir)| self.last_says(path, is_dir))
    }

    fn last_says(&self, path: &str, is_dir: bool) -> bool {
        let basename = path.rfind('/').map(|at| at + 1);
        self.0
            .iter()
            .rev()
            .find(|pattern| {
                pattern.matches_repo_relative_path(
                    path.as_bytes().as_bstr(),
                    basename,
                    Some(is_dir),
                    Case::Sensitive,
                    wildmatch::Mode::NO_MATCH_SLASH_LITERAL,
                )
            })
            .is_some_and(|pattern| !pattern.mode.contains(Mode::NEGATIVE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_gitignore() {
        let rules = Rules::new(Some("# all but\n/*\n!/deploy\n*.md\n!keep.md\nsecret/\n"));
        for (path, out) in [
            ("readme", true),
            ("src/main.rs", true),
            ("deploy/a.yaml", false),
            ("deploy/a.md", true),
            ("deploy/keep.md", false),
            ("deploy/secret/x", true),
            ("deploy/x/secret", false),
        ] {
            assert_eq!(rules.leave_out(path), out, "{path}");
        }
        let rules = Rules::new(None);
        assert!(rules.leave_out("a/b.png") && rules.leave_out(".github/workflows/x.yaml"));
        assert!(!rules.leave_out("a/b.yaml"));
    }
}
