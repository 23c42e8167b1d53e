//! Where one statement of a text ends and the next begins: the rules of `sqlite3_complete`, so that a trigger with
//! statements of its own is one.

/// A token as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Semicolon,
    Blank,
    Explain,
    Create,
    Temp,
    Trigger,
    End,
    Other,
}

/// How far a statement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Normal,
    Explain,
    Create,
    /// In CREATE TRIGGER, whose statements end in semicolons of their own.
    Trigger,
    TriggerSemicolon,
    TriggerEnd,
}

impl State {
    const fn next(self, token: Token) -> Self {
        use State as S;
        use Token as T;
        match (self, token) {
            (S::Trigger | S::TriggerSemicolon, T::Semicolon) | (S::TriggerSemicolon, T::Blank) => {
                S::TriggerSemicolon
            }
            (_, T::Semicolon) => S::Start,
            (state, T::Blank) => state,
            (S::Start, T::Explain) | (S::Explain, T::Other) => S::Explain,
            (S::Start | S::Explain, T::Create) | (S::Create, T::Temp) => S::Create,
            (S::TriggerSemicolon, T::End) => S::TriggerEnd,
            (S::Create, T::Trigger) | (S::Trigger | S::TriggerSemicolon | S::TriggerEnd, _) => {
                S::Trigger
            }
            (S::Start | S::Normal | S::Explain | S::Create, _) => S::Normal,
        }
    }
}

/// The statements of a text, without what is only blank.
pub(crate) fn statements(sql: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut state, mut begin, mut at) = (State::Start, 0, 0);
    while at < sql.len() {
        let (token, end) = token(sql, at);
        let before = state;
        state = state.next(token);
        at = end;
        if state == State::Start {
            if token == Token::Semicolon && before != State::Start {
                found.extend(sql.get(begin..at));
            }
            // Blanks in front are left in front.
            if token == Token::Semicolon {
                begin = at;
            }
        }
    }
    if state != State::Start {
        found.extend(sql.get(begin..));
    }
    found
}

/// The token at `at`, and where it ends.
fn token(sql: &str, at: usize) -> (Token, usize) {
    let rest = sql.get(at..).unwrap_or_default();
    let mut chars = rest.chars();
    let (first, second) = (chars.next().unwrap_or(' '), chars.next());
    let to = |end: Option<usize>, more: usize| at + end.map_or(rest.len(), |end| end + more);
    match (first, second) {
        (';', _) => (Token::Semicolon, at + 1),
        (' ' | '\t' | '\n' | '\r' | '\x0c', _) => (Token::Blank, at + 1),
        ('/', Some('*')) => {
            let inner = rest.get(2..).unwrap_or_default();
            (Token::Blank, to(inner.find("*/"), 4))
        }
        ('-', Some('-')) => (Token::Blank, to(rest.find('\n'), 1)),
        ('[', _) => (Token::Other, to(rest.find(']'), 1)),
        ('`' | '"' | '\'', _) => {
            let inner = rest.get(1..).unwrap_or_default();
            (Token::Other, to(inner.find(first), 2))
        }
        _ if is_word(first) => {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            (word(rest.get(..end).unwrap_or_default()), at + end)
        }
        _ => (Token::Other, at + first.len_utf8()),
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

fn word(text: &str) -> Token {
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    if is("create") {
        Token::Create
    } else if is("trigger") {
        Token::Trigger
    } else if is("temp") || is("temporary") {
        Token::Temp
    } else if is("end") {
        Token::End
    } else if is("explain") {
        Token::Explain
    } else {
        Token::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trimmed(sql: &str) -> Vec<&str> {
        statements(sql).into_iter().map(str::trim).collect()
    }

    #[test]
    fn statements_end_at_their_own_semicolons_alone() {
        assert_eq!(trimmed("select 1; select 2"), ["select 1;", "select 2"]);
        assert_eq!(trimmed("select ';'; select \"a;\" , [b;], `c;`;").len(), 2);
        assert_eq!(trimmed("select 'it''s;'; select 2").len(), 2);
        assert_eq!(trimmed("/* ; */ select 1 -- ;\n; select 2;").len(), 2);
        assert_eq!(trimmed(" ; ;; -- nothing\n /* ; "), Vec::<&str>::new());
        assert_eq!(trimmed(""), Vec::<&str>::new());
        assert_eq!(trimmed("begin; end; commit").len(), 3);
        assert_eq!(
            trimmed("select '\u{1f600};\u{e9}'; x\u{e9}; 'open ; "),
            ["select '\u{1f600};\u{e9}';", "x\u{e9};", "'open ;"]
        );
    }

    #[test]
    fn a_trigger_is_one_statement() {
        let trigger = "create temp trigger x after insert on t begin
            select case when 1 then 2 end; update t set a = ';'; end;";
        let text = format!("create table t(a);{trigger} select 1;");
        assert_eq!(trimmed(&text), ["create table t(a);", trigger, "select 1;"]);
        assert_eq!(trimmed("explain create trigger x begin a; end; b").len(), 2);
        assert_eq!(trimmed("create table trigger_(a); end; b").len(), 3);
    }
}
