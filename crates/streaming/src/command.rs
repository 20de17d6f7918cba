//! What goes between a client and a program: pieces of its streams, and how it ended.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// For standard input.
    Stdin(Bytes),
    /// Input has ended.
    StdinEnds,
    /// The client's terminal has another size.
    Resize(Resize),
}

/// A terminal's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Resize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What a client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended; nothing follows.
    Ended(Ended),
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With exit code 0, or the client has seen all of what it attached to.
    Success,
    /// With another.
    ExitCode {
        /// The code.
        code: i32,
        /// What a person reads.
        message: String,
    },
    /// It could not be run, or was stopped.
    Failed(String),
}

impl Ended {
    /// As Kubernetes says it: a `Status`.
    pub fn to_json(&self) -> Bytes {
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode { code, message } => json!({
                "metadata": {}, "status": "Failure", "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {}, "status": "Failure", "message": message,
                "reason": "InternalError", "code": 500,
                "details": {"causes": [{"message": message}]},
            }),
        };
        status.to_string().into()
    }

    /// Reads a `Status`; what is none is a failure in its words.
    pub fn from_json(text: &[u8]) -> Self {
        let words = || String::from_utf8_lossy(text).into_owned();
        let Ok(status) = serde_json::from_slice::<Value>(text) else {
            return Self::Failed(words());
        };
        if status["status"] == "Success" {
            return Self::Success;
        }
        let message = status["message"].as_str().map_or_else(words, Into::into);
        let causes = status["details"]["causes"].as_array();
        let code = causes
            .into_iter()
            .flatten()
            .find(|cause| cause["reason"] == "ExitCode")
            .and_then(|cause| cause["message"].as_str()?.parse().ok());
        match code {
            Some(code) if status["reason"] == "NonZeroExitCode" => Self::ExitCode { code, message },
            _ => Self::Failed(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_as_it_was_said() {
        for ended in [
            Ended::Success,
            Ended::ExitCode {
                code: 7,
                message: "command terminated with exit code 7".to_owned(),
            },
            Ended::Failed("container stopped".to_owned()),
        ] {
            assert_eq!(Ended::from_json(&ended.to_json()), ended);
        }
        let plain = Ended::from_json(b"no Status");
        assert_eq!(plain, Ended::Failed("no Status".to_owned()));
        let odd = br#"{"status":"Failure","reason":"NonZeroExitCode","message":"m"}"#;
        assert_eq!(Ended::from_json(odd), Ended::Failed("m".to_owned()));
    }
}
