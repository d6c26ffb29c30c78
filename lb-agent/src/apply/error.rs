//! What can go wrong in `apply`.

use lb_common::layout::Table;

use crate::dataplane::memory::StoreError;
use crate::model::ObjectName;

/// Why a change could not be applied. The tables are consistent all the same, and the change is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A table has no room left, also after everything freed was reclaimed.
    #[error("table {} is full ({used} of {rows} rows in use)", table.map_name())]
    TableFull {
        /// The table.
        table: Table,
        /// Rows (of [`Table::Slots`]: words; of the frontend tables: entries) in use.
        used: u32,
        /// Rows there are.
        rows: u32,
    },
    /// The table memory refused a store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room for a Maglev table. Until there is, connections of the Service choose at random.
    #[error(
        "no room for the Maglev table of {service} ({words} words; {used} of {rows} are in use, and Maglev tables leave \
         a quarter free for others): its connections choose at random until there is. --max-slots makes more room"
    )]
    NoMaglev {
        /// The Service port.
        service: String,
        /// Words of slots wanted.
        words: u32,
        /// Words in use.
        used: u32,
        /// Words there are.
        rows: u32,
    },
    /// A name is longer than Kubernetes allows.
    #[error("a name of {0} is longer than 63 bytes")]
    NameTooLong(String),
    /// A plan names an endpoint it does not have, or more than a Service may have.
    #[error("the plan of {0} names endpoints it does not have")]
    InvalidPlan(String),
    /// A Service port has more source ranges than the datapath looks through. Until there are fewer, its load balancer
    /// VIPs are open to nobody.
    #[error(
        "{service} has {count} loadBalancerSourceRanges that cannot be joined, at most {max} are possible: nobody may \
         use its load balancer addresses until there are fewer"
    )]
    TooManySources {
        /// The Service port.
        service: String,
        /// Its ranges, after those inside others were left out and halves joined.
        count: usize,
        /// The most possible.
        max: u32,
    },
    /// More Service ranges than the table holds, or a prefix longer than the address.
    #[error("Service ranges: at most {max}, each with a prefix of its family")]
    InvalidRanges {
        /// Most ranges possible.
        max: u32,
    },
}

/// Why tables could not be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// The tables were written in another layout.
    #[error(
        "the pinned tables have layout {found}, this agent has layout {wanted}: run `lb-agent cleanup` (Services \
         stop working until the agent has filled new tables) and start again"
    )]
    Version {
        /// Layout of the tables.
        found: u64,
        /// Layout of this agent.
        wanted: u64,
    },
    /// The frontend tables need a power of two of buckets, the others at least two rows.
    #[error("table {} has an unusable number of rows: {rows}", table.map_name())]
    Size {
        /// The table.
        table: Table,
        /// Its rows.
        rows: u32,
    },
    /// The tables contradict themselves in a way no interrupted update explains.
    #[error("the pinned tables are damaged ({0}): run `lb-agent cleanup` and start again")]
    Damaged(String),
    /// The table memory refused a store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A Service whose change is not (wholly) in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The Service.
    pub service: ObjectName,
    /// Why.
    pub error: ApplyError,
}
