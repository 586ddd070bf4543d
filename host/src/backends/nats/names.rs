//! Names on the server.

/// A text as one token of a subject, and as a name of a stream, a bucket or a consumer: letters, digits, `-` and `_` are
/// themselves, every other byte is `=` and two digits. So no name is a wildcard, or two tokens, or another's.
pub(super) fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("={byte:02X}"));
        }
    }
    // An empty token is none.
    if token.is_empty() { "=".into() } else { token }
}

/// The text of a token; none for one that is not written as [`token`] does.
pub(super) fn text(token: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), token.as_bytes());
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        if first == b'=' && !more.is_empty() {
            let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &more[2..];
        } else if first != b'=' {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Names of one fleet's things, and this host's.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) stream: String,
    /// What subjects of events begin with.
    subjects: String,
    pub(super) consumer: String,
    bucket: String,
}

impl Names {
    pub(super) fn new(name: &str, host: &str) -> Self {
        let name = token(name);
        Self {
            stream: format!("{name}-control"),
            subjects: format!("{name}.control"),
            consumer: format!("host-{}", token(host)),
            bucket: format!("{name}-control-board"),
        }
    }

    /// All subjects of events.
    pub(super) fn every_subject(&self) -> String {
        format!("{}.>", self.subjects)
    }

    /// The subject of an entity: `plugin:<name>` or `trust`.
    pub(super) fn subject(&self, entity: &str) -> String {
        match entity.split_once(':') {
            Some((kind, name)) => format!("{}.{}.{}", self.subjects, token(kind), token(name)),
            None => format!("{}.{}", self.subjects, token(entity)),
        }
    }

    /// The stream behind the bucket.
    pub(super) fn bucket_stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    pub(super) fn bucket_subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }

    pub(super) fn report_subject(&self, host: &str) -> String {
        self.bucket_subject(&format!("host.{}", token(host)))
    }

    /// Under which sinks claim to let the stream begin.
    pub(super) fn begin_subject(&self) -> String {
        self.bucket_subject("begin")
    }

    /// Whose report lies under a subject.
    pub(super) fn host_of(&self, subject: &str) -> Option<String> {
        text(subject.strip_prefix(&self.bucket_subject("host."))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_token_and_comes_back() {
        for name in ["flight-board", "a.b", "*", ">", "a b", "", "ü=", "$JS", "=2E", "\r\n"] {
            let written = token(name);
            let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
            assert!(!written.is_empty() && written.bytes().all(safe), "{name}: {written}");
            assert_eq!(text(&written).as_deref(), Some(name));
        }
        assert_ne!(token("a.b"), token("a=2Eb"));
        assert_eq!((text("=2"), text("=zz"), text("=FF")), (None, None, None));
    }

    #[test]
    fn entities_have_subjects_of_their_own() {
        let names = Names::new("fleet", "h.1");
        assert_eq!(names.subject("plugin:a.>"), "fleet.control.plugin.a=2E=3E");
        assert_eq!(names.subject("trust"), "fleet.control.trust");
        assert_ne!(names.subject("plugin:trust"), names.subject("trust"));
        assert_eq!(names.consumer, "host-h=2E1");
        assert_eq!(names.host_of(&names.report_subject("h.1")).as_deref(), Some("h.1"));
        for subject in [names.bucket_subject("mark"), names.begin_subject()] {
            assert_eq!(names.host_of(&subject), None);
        }
    }
}
