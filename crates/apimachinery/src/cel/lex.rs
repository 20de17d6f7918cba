//! Source text to tokens.

use super::CompileError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    Int(i64),
    /// A whole number one above the greatest: only after a minus.
    IntMin,
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Operators and brackets.
    Sign(&'static str),
    End,
}

const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", "(", ")",
    "[", "]", "{", "}", ",", ".",
];

pub(super) struct Lexer<'s> {
    chars: Vec<char>,
    at: usize,
    source: &'s str,
}

impl<'s> Lexer<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self {
            chars: source.chars().collect(),
            at: 0,
            source,
        }
    }

    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn fail(&self, at: usize, message: &str) -> CompileError {
        CompileError::at(self.source, at, &format!("Syntax error: {message}"))
    }

    /// The next token and the character where it starts.
    pub(super) fn next(&mut self) -> Result<(Token, usize), CompileError> {
        loop {
            match self.peek(0) {
                ' ' | '\t' | '\n' | '\r' | '\x0c' => self.at += 1,
                '/' if self.peek(1) == '/' => {
                    while self.at < self.chars.len() && self.peek(0) != '\n' {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
        let start = self.at;
        if start >= self.chars.len() {
            return Ok((Token::End, start));
        }
        let c = self.peek(0);
        if let Some(prefix) = self.text_prefix() {
            return Ok((self.text(prefix)?, start));
        }
        if c.is_ascii_alphabetic() || c == '_' {
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            let name = self.chars[start..self.at].iter().collect();
            return Ok((Token::Ident(name), start));
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return Ok((self.number()?, start));
        }
        for sign in SIGNS {
            if sign.chars().enumerate().all(|(i, s)| self.peek(i) == s) {
                self.at += sign.len();
                return Ok((Token::Sign(sign), start));
            }
        }
        Err(self.fail(start, &format!("token recognition error at: '{c}'")))
    }

    /// Length of what comes before a quote, when a text starts here.
    fn text_prefix(&self) -> Option<usize> {
        let quote = |c: char| c == '"' || c == '\'';
        let letter = |c: char| matches!(c, 'r' | 'R' | 'b' | 'B');
        let (a, b, c) = (self.peek(0), self.peek(1), self.peek(2));
        if quote(a) {
            Some(0)
        } else if letter(a) && quote(b) {
            Some(1)
        } else if letter(a) && letter(b) && !a.eq_ignore_ascii_case(&b) && quote(c) {
            Some(2)
        } else {
            None
        }
    }

    fn text(&mut self, prefix: usize) -> Result<Token, CompileError> {
        let start = self.at;
        let (mut raw, mut bytes) = (false, false);
        for i in 0..prefix {
            match self.peek(i).to_ascii_lowercase() {
                'r' => raw = true,
                _ => bytes = true,
            }
        }
        self.at += prefix;
        let quote = self.peek(0);
        let long = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if long { 3 } else { 1 };
        let mut out = Vec::new();
        loop {
            if self.at >= self.chars.len() || (!long && matches!(self.peek(0), '\n' | '\r')) {
                return Err(self.fail(start, "token recognition error: unterminated string"));
            }
            let c = self.peek(0);
            if c == quote && (!long || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if long { 3 } else { 1 };
                break;
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                if c == '\\' && self.peek(0) == quote {
                    out.push(b'\\');
                    self.at += 1;
                    push(&mut out, quote);
                    continue;
                }
                push(&mut out, c);
            }
        }
        if bytes {
            return Ok(Token::Bytes(out));
        }
        let text = String::from_utf8(out).map_err(|_| self.fail(start, "invalid UTF-8"))?;
        Ok(Token::Text(text))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), CompileError> {
        let start = self.at;
        let c = self.peek(0);
        self.at += 1;
        let plain = match c {
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '\\' | '\'' | '"' | '`' | '?' => c,
            'x' | 'X' => return self.code(2, 16, bytes, out),
            'u' if !bytes => return self.code(4, 16, false, out),
            'U' if !bytes => return self.code(8, 16, false, out),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, bytes, out);
            }
            _ => return Err(self.fail(start, "unable to unescape string")),
        };
        push(out, plain);
        Ok(())
    }

    fn code(
        &mut self,
        digits: usize,
        radix: u32,
        bytes: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), CompileError> {
        let start = self.at;
        let mut n = 0;
        for _ in 0..digits {
            let d = self.peek(0).to_digit(radix);
            let d = d.ok_or_else(|| self.fail(start, "unable to unescape string"))?;
            n = n * radix + d;
            self.at += 1;
        }
        match (bytes, char::from_u32(n)) {
            (true, _) => out.push(n as u8),
            (false, Some(c)) => push(out, c),
            (false, None) => return Err(self.fail(start, "unable to unescape string")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Token, CompileError> {
        let start = self.at;
        if self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
            let digits: String = self.chars[start + 2..self.at].iter().collect();
            return self.whole(start, u64::from_str_radix(&digits, 16).ok());
        }
        let mut float = false;
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            float = true;
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
        }
        let sign = usize::from(matches!(self.peek(1), '+' | '-'));
        if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
            float = true;
            self.at += 1 + sign;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        if float {
            let n = text
                .parse()
                .map_err(|_| self.fail(start, "invalid double"))?;
            return Ok(Token::Double(n));
        }
        self.whole(start, text.parse().ok())
    }

    fn whole(&mut self, start: usize, n: Option<u64>) -> Result<Token, CompileError> {
        let unsigned = matches!(self.peek(0), 'u' | 'U');
        if unsigned {
            self.at += 1;
        }
        match n {
            Some(n) if unsigned => Ok(Token::Uint(n)),
            Some(n) if n == 1 << 63 => Ok(Token::IntMin),
            Some(n) => i64::try_from(n)
                .map(Token::Int)
                .map_err(|_| self.fail(start, "invalid int literal")),
            None if unsigned => Err(self.fail(start, "invalid uint literal")),
            None => Err(self.fail(start, "invalid int literal")),
        }
    }
}

fn push(out: &mut Vec<u8>, c: char) {
    let mut buffer = [0; 4];
    out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
}
