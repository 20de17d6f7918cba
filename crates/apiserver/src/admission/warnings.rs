//! What admission tells a client that it does not refuse: `Warning` headers of the answer;
//! and what it notes for the audit log.

use parking_lot::Mutex;

/// Told during one request.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    /// Guards the list for single pushes.
    told: Mutex<Vec<String>>,
    /// Annotations of the audit log. Guards the list for single pushes.
    notes: Mutex<Vec<(String, String)>>,
    /// Nobody listens: the server itself writes.
    silent: bool,
}

impl Warnings {
    /// Of a write without a client.
    pub(crate) fn nobody() -> &'static Self {
        static NOBODY: Warnings = Warnings {
            told: Mutex::new(Vec::new()),
            notes: Mutex::new(Vec::new()),
            silent: true,
        };
        &NOBODY
    }

    /// Tells the client something, once.
    pub(crate) fn tell(&self, text: String) {
        if self.silent {
            return;
        }
        let mut told = self.told.lock();
        if !told.contains(&text) {
            told.push(text);
        }
    }

    /// The same of several things.
    pub(crate) fn tell_all(&self, texts: Vec<String>) {
        texts.into_iter().for_each(|text| self.tell(text));
    }

    /// Notes something for the audit log; a later note of the same key does not replace it.
    pub(crate) fn note(&self, key: impl Into<String>, value: impl Into<String>) {
        if self.silent {
            return;
        }
        let (key, mut notes) = (key.into(), self.notes.lock());
        if notes.iter().all(|(k, _)| *k != key) {
            notes.push((key, value.into()));
        }
    }

    pub(crate) fn take_notes(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.notes.lock())
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock())
    }
}
