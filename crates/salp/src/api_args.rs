//! What the API server records, keeps encrypted and believes: upstream's flags and files.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Settings of the API server, named as upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "API server")]
pub struct ApiArgs {
    /// Audit policy (audit.k8s.io/v1): which requests are recorded; needs --audit-log-path.
    #[arg(long, env = "SALP_AUDIT_POLICY_FILE", value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where requests are recorded, a line of JSON each; `-` is standard output.
    #[arg(long, env = "SALP_AUDIT_LOG_PATH", value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// Megabytes of the audit log before it is put aside [default: 100].
    #[arg(long, env = "SALP_AUDIT_LOG_MAXSIZE", value_name = "MB")]
    pub audit_log_maxsize: Option<u64>,
    /// Audit logs put aside that are kept [default: all].
    #[arg(long, env = "SALP_AUDIT_LOG_MAXBACKUP", value_name = "N")]
    pub audit_log_maxbackup: Option<usize>,
    /// Days that audit logs put aside are kept [default: for ever].
    #[arg(long, env = "SALP_AUDIT_LOG_MAXAGE", value_name = "DAYS")]
    pub audit_log_maxage: Option<u64>,
    /// What the store keeps encrypted, and under which keys (EncryptionConfiguration).
    #[arg(long, env = "SALP_ENCRYPTION_PROVIDER_CONFIG", value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Issuers of tokens that are believed (AuthenticationConfiguration).
    #[arg(long, env = "SALP_AUTHENTICATION_CONFIG", value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// OpenID Connect issuer that is believed: an https URL.
    #[arg(long, env = "SALP_OIDC_ISSUER_URL", value_name = "URL")]
    pub oidc_issuer_url: Option<String>,
    /// Audience that its tokens must be for.
    #[arg(long, env = "SALP_OIDC_CLIENT_ID", value_name = "ID")]
    pub oidc_client_id: Option<String>,
    /// Claim that is the user's name [default: sub].
    #[arg(long, env = "SALP_OIDC_USERNAME_CLAIM", value_name = "CLAIM")]
    pub oidc_username_claim: Option<String>,
    /// What is put before the name; `-` for nothing [default: the issuer and #, except for email].
    #[arg(long, env = "SALP_OIDC_USERNAME_PREFIX", value_name = "TEXT")]
    pub oidc_username_prefix: Option<String>,
    /// Claim with the user's groups.
    #[arg(long, env = "SALP_OIDC_GROUPS_CLAIM", value_name = "CLAIM")]
    pub oidc_groups_claim: Option<String>,
    /// What is put before each group.
    #[arg(long, env = "SALP_OIDC_GROUPS_PREFIX", value_name = "TEXT")]
    pub oidc_groups_prefix: Option<String>,
    /// Claims that tokens must have (CLAIM=VALUE).
    #[arg(long, value_delimiter = ',', value_name = "CLAIM=VALUE")]
    pub oidc_required_claim: Vec<String>,
    /// Algorithms that tokens may be signed by [default: RS256].
    #[arg(long, value_delimiter = ',', value_name = "ALG")]
    pub oidc_signing_algs: Vec<String>,
    /// Certificates (PEM) that the issuer is trusted by [default: what everybody trusts].
    #[arg(long, env = "SALP_OIDC_CA_FILE", value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// Certificates (PEM) that sign those of proxies which say who asks, beside the site's own.
    #[arg(long, env = "SALP_REQUESTHEADER_CLIENT_CA_FILE", value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of such proxies [default: any that --requestheader-client-ca-file has signed].
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers with the user's name [default: X-Remote-User].
    #[arg(long, value_delimiter = ',', value_name = "HEADER")]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid [default: X-Remote-Uid].
    #[arg(long, value_delimiter = ',', value_name = "HEADER")]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with groups [default: X-Remote-Group].
    #[arg(long, value_delimiter = ',', value_name = "HEADER")]
    pub requestheader_group_headers: Vec<String>,
    /// What headers with further facts start with [default: X-Remote-Extra-].
    #[arg(long, value_delimiter = ',', value_name = "PREFIX")]
    pub requestheader_extra_headers_prefix: Vec<String>,
}

impl ApiArgs {
    /// The same with what the file says where the flags say nothing.
    pub fn or(self, file: Self) -> Self {
        let list = |flag: Vec<String>, file| if flag.is_empty() { file } else { flag };
        Self {
            audit_policy_file: self.audit_policy_file.or(file.audit_policy_file),
            audit_log_path: self.audit_log_path.or(file.audit_log_path),
            audit_log_maxsize: self.audit_log_maxsize.or(file.audit_log_maxsize),
            audit_log_maxbackup: self.audit_log_maxbackup.or(file.audit_log_maxbackup),
            audit_log_maxage: self.audit_log_maxage.or(file.audit_log_maxage),
            encryption_provider_config: self
                .encryption_provider_config
                .or(file.encryption_provider_config),
            authentication_config: self.authentication_config.or(file.authentication_config),
            oidc_issuer_url: self.oidc_issuer_url.or(file.oidc_issuer_url),
            oidc_client_id: self.oidc_client_id.or(file.oidc_client_id),
            oidc_username_claim: self.oidc_username_claim.or(file.oidc_username_claim),
            oidc_username_prefix: self.oidc_username_prefix.or(file.oidc_username_prefix),
            oidc_groups_claim: self.oidc_groups_claim.or(file.oidc_groups_claim),
            oidc_groups_prefix: self.oidc_groups_prefix.or(file.oidc_groups_prefix),
            oidc_required_claim: list(self.oidc_required_claim, file.oidc_required_claim),
            oidc_signing_algs: list(self.oidc_signing_algs, file.oidc_signing_algs),
            oidc_ca_file: self.oidc_ca_file.or(file.oidc_ca_file),
            requestheader_client_ca_file: self
                .requestheader_client_ca_file
                .or(file.requestheader_client_ca_file),
            requestheader_allowed_names: list(
                self.requestheader_allowed_names,
                file.requestheader_allowed_names,
            ),
            requestheader_username_headers: list(
                self.requestheader_username_headers,
                file.requestheader_username_headers,
            ),
            requestheader_uid_headers: list(
                self.requestheader_uid_headers,
                file.requestheader_uid_headers,
            ),
            requestheader_group_headers: list(
                self.requestheader_group_headers,
                file.requestheader_group_headers,
            ),
            requestheader_extra_headers_prefix: list(
                self.requestheader_extra_headers_prefix,
                file.requestheader_extra_headers_prefix,
            ),
        }
    }

    /// Tells the API server; reads the files that are named.
    ///
    /// # Errors
    /// When a file can't be read, or settings lack others.
    pub fn apply(&self, config: &mut apiserver::Config) -> Result<()> {
        config.audit = self.audit()?;
        config.request_header = self.request_header()?;
        let encryption = self.encryption_provider_config.as_deref();
        config.encryption = encryption.map(read).transpose()?;
        config.authentication = match (&self.authentication_config, &self.oidc_issuer_url) {
            (Some(_), Some(_)) => bail!(
                "use --authentication-config: the --oidc flags can't be given beside it, name the issuer in the file"
            ),
            (Some(file), None) => Some(read(file)?),
            (None, Some(url)) => Some(self.issuer(url)?.to_string()),
            (None, None) if self.oidc_client_id.is_some() => {
                bail!("use --oidc-client-id: name the issuer with --oidc-issuer-url")
            }
            (None, None) => None,
        };
        Ok(())
    }

    /// The file that an error of the API server's start is about.
    pub fn file_of(&self, error: &apiserver::Error) -> Option<&Path> {
        use apiserver::Error;
        let file = match error {
            Error::AuditPolicy(_) => &self.audit_policy_file,
            Error::AuditLog(_) => &self.audit_log_path,
            Error::Authentication(_) => match &self.oidc_ca_file {
                Some(file) if self.authentication_config.is_none() => return Some(file),
                _ => &self.authentication_config,
            },
            Error::Encryption(_) => &self.encryption_provider_config,
            Error::RequestHeader(_) => &self.requestheader_client_ca_file,
            _ => return None,
        };
        file.as_deref()
    }

    fn audit(&self) -> Result<Option<apiserver::AuditConfig>> {
        let (policy, path) = match (&self.audit_policy_file, &self.audit_log_path) {
            (Some(policy), Some(path)) => (policy, path),
            (None, None) => return Ok(None),
            (Some(_), None) => {
                bail!("use --audit-policy-file: say where to record with --audit-log-path")
            }
            (None, Some(_)) => {
                bail!("use --audit-log-path: say what to record with --audit-policy-file")
            }
        };
        Ok(Some(apiserver::AuditConfig {
            policy: read(policy)?,
            log: apiserver::AuditLog {
                path: path.clone(),
                size_max_mb: self.audit_log_maxsize.unwrap_or(0),
                backups_max: self.audit_log_maxbackup.unwrap_or(0),
                age_max_days: self.audit_log_maxage.unwrap_or(0),
            },
        }))
    }

    fn request_header(&self) -> Result<apiserver::RequestHeader> {
        let standard = apiserver::RequestHeader::default();
        let or = |flag: &Vec<String>, default| match flag.as_slice() {
            [] => default,
            stated => stated.to_vec(),
        };
        let ca = self.requestheader_client_ca_file.as_deref();
        Ok(apiserver::RequestHeader {
            ca: ca.map(read).transpose()?,
            allowed_names: self.requestheader_allowed_names.clone(),
            username_headers: or(
                &self.requestheader_username_headers,
                standard.username_headers,
            ),
            uid_headers: or(&self.requestheader_uid_headers, standard.uid_headers),
            group_headers: or(&self.requestheader_group_headers, standard.group_headers),
            extra_prefixes: or(
                &self.requestheader_extra_headers_prefix,
                standard.extra_prefixes,
            ),
        })
    }

    /// The flags in the form of the file.
    fn issuer(&self, url: &str) -> Result<Value> {
        let Some(client) = &self.oidc_client_id else {
            bail!("use --oidc-issuer-url: name the audience with --oidc-client-id");
        };
        let claim = self.oidc_username_claim.as_deref().unwrap_or("sub");
        let prefix = match self.oidc_username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if claim == "email" => String::new(),
            None => format!("{url}#"),
        };
        let mut mappings = json!({"username": {"claim": claim, "prefix": prefix}});
        if let Some(groups) = &self.oidc_groups_claim {
            let prefix = self.oidc_groups_prefix.clone().unwrap_or_default();
            mappings["groups"] = json!({"claim": groups, "prefix": prefix});
        }
        let mut rules = Vec::new();
        for pair in &self.oidc_required_claim {
            let Some((claim, value)) = pair.split_once('=') else {
                bail!("use --oidc-required-claim {pair:?}: want CLAIM=VALUE");
            };
            rules.push(json!({"claim": claim, "requiredValue": value}));
        }
        let algorithms = match self.oidc_signing_algs.as_slice() {
            [] => vec!["RS256".to_owned()],
            some => some.to_vec(),
        };
        let mut issuer =
            json!({"url": url, "audiences": [client], "signingAlgorithms": algorithms});
        if let Some(file) = &self.oidc_ca_file {
            issuer["certificateAuthority"] = read(file)?.into();
        }
        Ok(json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{"issuer": issuer, "claimMappings": mappings, "claimValidationRules": rules}],
        }))
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_what_the_file_would() {
        let mut args = ApiArgs {
            oidc_issuer_url: Some("https://id.example.com".to_owned()),
            ..ApiArgs::default()
        };
        assert!(args.issuer("https://id.example.com").is_err());
        args.oidc_client_id = Some("salp".to_owned());
        args.oidc_groups_claim = Some("roles".to_owned());
        args.oidc_required_claim = vec!["hd=example.com".to_owned()];
        let made = args.issuer("https://id.example.com").unwrap();
        assert_eq!(
            made["jwt"][0],
            json!({
                "issuer": {"url": "https://id.example.com", "audiences": ["salp"], "signingAlgorithms": ["RS256"]},
                "claimMappings": {"username": {"claim": "sub", "prefix": "https://id.example.com#"},
                    "groups": {"claim": "roles", "prefix": ""}},
                "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"}],
            })
        );
        args.oidc_username_prefix = Some("-".to_owned());
        let made = args.issuer("https://id.example.com").unwrap();
        assert_eq!(made["jwt"][0]["claimMappings"]["username"]["prefix"], "");
    }

    #[test]
    fn headers_of_proxies_are_upstreams_unless_stated() {
        let args = ApiArgs {
            requestheader_group_headers: vec!["X-Team".to_owned()],
            ..ApiArgs::default()
        };
        let made = args.request_header().unwrap();
        assert_eq!(made.username_headers, ["X-Remote-User"]);
        assert_eq!(made.group_headers, ["X-Team"]);
        let args = ApiArgs {
            requestheader_client_ca_file: Some("/no/such/ca.crt".into()),
            ..ApiArgs::default()
        };
        let error = args.request_header().unwrap_err().to_string();
        assert!(error.contains("/no/such/ca.crt"), "{error}");
    }

    #[test]
    fn half_of_the_audit_settings_is_none() {
        let only_policy = ApiArgs {
            audit_policy_file: Some("p".into()),
            ..ApiArgs::default()
        };
        let error = only_policy.audit().unwrap_err().to_string();
        assert!(error.contains("--audit-log-path"), "{error}");
        assert!(ApiArgs::default().audit().unwrap().is_none());
    }
}
