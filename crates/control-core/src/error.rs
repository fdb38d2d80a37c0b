//! Errors, for the node that asks and for the administrator.

use crate::names::LabelError;

/// The reason why a map request is refused. The text goes to the node as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The node key is unknown, or belongs to another machine.
    #[error("node not found: this node key is not registered here; log in again")]
    NotFound,
    /// The client is older than what is served.
    #[error(
        "this client is too old (capability version {have}); version {need} is needed, which is Tailscale 1.80 or Warren 0.1"
    )]
    TooOld {
        /// The capability version of the client.
        have: u32,
        /// [`crate::MIN_CAPABILITY`].
        need: u32,
    },
    /// Too many rows wait for the disk.
    #[error("the server cannot save its state at the moment (see its log); try again later")]
    Unsaved,
}

/// The reason why a person's login does not go on. The text is for that person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// No machine waits under the id.
    #[error("this machine no longer waits: it was let in already, or the request is too old")]
    NoMachine,
    /// No session waits under the id.
    #[error("this session no longer waits: it was decided already, or the request is too old")]
    NoSession,
    /// Too many logins at the same time.
    #[error("too many people log in at the moment")]
    TooMany,
    /// The login is not known, was used already, or is too old.
    #[error("this login is not known here: it was used already, or it took too long")]
    Unknown,
    /// Another browser began it, or this one refuses cookies.
    #[error("this login began in another browser, or this browser refuses cookies")]
    OtherBrowser,
    /// The decision does not come from the page.
    #[error("this decision does not come from the page of this login")]
    Forged,
    /// Another user has the login name.
    #[error(
        "another user of this network is called \"{name}\" already; the administrator can say that it is you: warren-control users link {name} --issuer {issuer} --subject {subject}"
    )]
    NameTaken {
        /// The login name.
        name: String,
        /// The issuer of the account.
        issuer: String,
        /// Its subject.
        subject: String,
    },
    /// Only the owner of the machine at the other end may confirm a session.
    #[error("only the owner of the machine from which the session comes can confirm it")]
    NotTheOwner,
    /// The machine or session cannot be let in, for this reason.
    #[error("{0}")]
    Refused(String),
}

/// The reason why a command was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No user has this name or number.
    #[error(
        "user \"{0}\" not found; `warren-control users list` shows them, `warren-control users create NAME` makes one"
    )]
    NoUser(String),
    /// A key was wanted for a user that is not there, but could be.
    #[error(
        "user \"{0}\" not found; create it first with `warren-control users create {0}`, or list the users with `warren-control users list`"
    )]
    NoUserForKey(String),
    /// The name is in use.
    #[error("a user \"{0}\" exists already")]
    UserExists(String),
    /// Another user logs in with the account.
    #[error(
        "the account belongs to the user \"{0}\"; delete that user first, or leave the account with it"
    )]
    AccountTaken(String),
    /// A user with machines cannot be deleted.
    #[error(
        "user \"{name}\" still owns {nodes} node(s); delete them first (`warren-control nodes list`)"
    )]
    UserHasNodes {
        /// The name of the user.
        name: String,
        /// The number of its nodes.
        nodes: usize,
    },
    /// No node has this name, number or address.
    #[error("node \"{0}\" not found; `warren-control nodes list` shows them")]
    NoNode(String),
    /// Two records have the name.
    #[error("\"{text}\" is the name of {}; use one of these instead", candidates.join(" and "))]
    Ambiguous {
        /// The reference.
        text: String,
        /// References that name one record each.
        candidates: Vec<String>,
    },
    /// A node cannot be asked without a stream.
    #[error("node \"{0}\" is not connected now, so it cannot be asked")]
    NotConnected(String),
    /// It has not read the questions before.
    #[error("node \"{0}\" has not read the questions before this one yet; try again later")]
    TooManyQuestions(String),
    /// Another machine has the name.
    #[error("the name \"{0}\" belongs to another node; choose another or rename that one first")]
    NameTaken(String),
    /// The name is not valid.
    #[error(transparent)]
    Name(#[from] LabelError),
    /// No pre-auth key has this number.
    #[error("pre-auth key {0} not found; `warren-control preauthkeys list` shows them")]
    NoAuthKey(i64),
    /// A key must belong to a user or to tags.
    #[error("a pre-auth key needs an owner: `--user NAME`, or `--tag tag:NAME`")]
    KeyWithoutOwner,
    /// Not `tag:` and a name.
    #[error("\"{0}\" is not a tag; tags are \"tag:\", a letter, then letters, digits and \"-\"")]
    Tag(String),
    /// The policy does not define the tag.
    #[error(
        "the policy does not define \"{0}\"; add it to tagOwners first, with \"{0}\": [] if only administrators may use it"
    )]
    UndefinedTag(String),
    /// Nodes are given back by another command.
    #[error(
        "no tags given for node \"{0}\"; to give it to a user instead, run `warren-control nodes assign {0} --user NAME`"
    )]
    NoTags(String),
    /// The node has no user to whom it could be given back.
    #[error(
        "node \"{0}\" joined without a user; name one with `warren-control nodes assign {0} --user NAME`"
    )]
    JoinedWithoutUser(String),
    /// No machine waits under this id.
    #[error(
        "no machine waits for approval as \"{0}\"; requests are kept for 15 minutes, let it log in again"
    )]
    NoPending(String),
    /// No session waits under this id.
    #[error(
        "no SSH session waits for a check as \"{0}\"; `warren-control ssh-checks list` shows those that do; they are kept for 15 minutes"
    )]
    NoSshCheck(String),
    /// More than 4 million nodes.
    #[error("all addresses of 100.64.0.0/10 are in use")]
    NoAddresses,
    /// The policy does not hold together.
    #[error("{0}")]
    Policy(String),
    /// No such version in the history.
    #[error("no policy version {0}; `warren-control policy history` shows them")]
    NoPolicyVersion(i64),
    /// The policy comes from a file.
    #[error(
        "the policy comes from the file {0} (serve --policy): edit that file, it takes effect at once; or start the server without --policy to set policies here"
    )]
    PolicyFileInCharge(String),
    /// Another administrator was faster.
    #[error(
        "the policy was changed in the meantime; look at what is in force now (`warren-control policy get`) and try again"
    )]
    PolicyChanged,
    /// The question about a policy cannot be answered.
    #[error(transparent)]
    Question(#[from] warren_policy::explain::AskError),
    /// Name resolution is not changed.
    #[error(transparent)]
    Dns(#[from] crate::dns::DnsError),
    /// The moment lies outside of the calendar.
    #[error("the time given is out of range")]
    Time,
}
