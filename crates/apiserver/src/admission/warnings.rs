//! What admission tells a client that it does not refuse: `Warning` headers of the answer.

use parking_lot::Mutex;

/// Told during one request.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    /// Guards the list for single pushes.
    told: Mutex<Vec<String>>,
    /// Nobody listens: the server itself writes.
    silent: bool,
}

impl Warnings {
    /// Of a write without a client.
    pub(crate) fn nobody() -> &'static Self {
        static NOBODY: Warnings = Warnings {
            told: Mutex::new(Vec::new()),
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

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock())
    }
}
