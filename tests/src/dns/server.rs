//! Requests and responses: which records answer which question.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
};

use hickory_server::{
    net::runtime::Time,
    proto::{
        op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode},
        rr::{DNSClass, Name, RData, Record, RecordType},
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};

use super::{Options, TTL, records::Names};
use crate::apiserver::ApiHandle;

/// Most aliases followed for one answer.
const MOST_ALIASES: usize = 8;
/// The largest UDP answer, however much the client takes: what fits everywhere unfragmented.
const MOST_PAYLOAD: u16 = 1232;

pub(crate) struct Handler {
    names: Names,
    turn: AtomicUsize,
}

/// What is said to a question.
struct Answer {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
}

impl Answer {
    fn refusal(code: ResponseCode) -> Self {
        let (answers, authority, additional) = Default::default();
        Self { code, authoritative: false, answers, authority, additional }
    }
}

impl Handler {
    pub(crate) fn new(api: ApiHandle, options: Options) -> Self {
        Self { names: Names::new(api, options.outside), turn: AtomicUsize::new(0) }
    }

    fn answer(&self, name: &Name, wanted: RecordType) -> Answer {
        let mut answer = Answer::refusal(ResponseCode::NoError);
        answer.authoritative = self.names.is_ours(name);
        let mut at = name.clone();
        for _ in 0..MOST_ALIASES {
            let Some(found) = self.names.at(&at) else {
                // A dangling alias is still an answer.
                if answer.answers.is_empty() {
                    answer.code = ResponseCode::NXDomain;
                }
                break;
            };
            let alias = found.iter().find_map(|data| match data {
                RData::CNAME(target) if wanted != RecordType::CNAME => Some(target.0.clone()),
                _ => None,
            });
            if let Some(target) = alias {
                answer
                    .answers
                    .extend(found.into_iter().map(|data| Record::from_rdata(at.clone(), TTL, data)));
                at = target;
                continue;
            }
            let mut records: Vec<Record> = found
                .into_iter()
                .filter(|data| wanted == RecordType::ANY || data.record_type() == wanted)
                .map(|data| Record::from_rdata(at.clone(), TTL, data))
                .collect();
            if !records.is_empty() {
                // Whoever takes the first address always is to meet all of them.
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % records.len();
                records.rotate_left(turn);
            }
            answer.additional = self.targets(&records);
            answer.answers.extend(records);
            break;
        }
        if answer.answers.is_empty() && answer.authoritative {
            answer.authority.push(self.names.soa(name));
        }
        answer
    }

    /// The addresses of the targets of SRV records.
    fn targets(&self, records: &[Record]) -> Vec<Record> {
        let mut targets: Vec<&Name> = records
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(&srv.target),
                _ => None,
            })
            .collect();
        targets.sort();
        targets.dedup();
        let mut additional = Vec::new();
        for target in targets {
            let found = self.names.at(target).unwrap_or_default();
            let addresses = found.into_iter().filter(|data| data.ip_addr().is_some());
            additional.extend(addresses.map(|data| Record::from_rdata(target.clone(), TTL, data)));
        }
        additional
    }
}

impl RequestHandler for Handler {
    fn handle_request<'handler, 'request, 'async_trait, R, T>(
        &'handler self,
        request: &'request Request,
        mut response_handle: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'async_trait>>
    where
        R: 'async_trait + ResponseHandler,
        T: 'async_trait + Time,
        'handler: 'async_trait,
        'request: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let answer = match request.request_info() {
                Err(_) => Answer::refusal(ResponseCode::FormErr),
                Ok(_) if request.metadata.op_code != OpCode::Query => Answer::refusal(ResponseCode::NotImp),
                Ok(info) if info.query.query_class() != DNSClass::IN => {
                    Answer::refusal(ResponseCode::Refused)
                }
                Ok(info) => self.answer(&Name::from(info.query.name()), info.query.query_type()),
            };
            let mut metadata = Metadata::response_from_request(&request.metadata);
            metadata.response_code = answer.code;
            metadata.authoritative = answer.authoritative;
            metadata.recursion_available = true;
            let edns = request.edns.as_ref().map(|asked| {
                let mut edns = Edns::new();
                edns.set_max_payload(asked.max_payload().clamp(512, MOST_PAYLOAD));
                edns
            });
            let mut builder = MessageResponseBuilder::from_message_request(request);
            if let Some(edns) = &edns {
                builder.edns(edns);
            }
            let response = builder.build(
                metadata,
                &answer.answers,
                &answer.authority,
                std::iter::empty(),
                &answer.additional,
            );
            match response_handle.send_response(response).await {
                Ok(info) => info,
                Err(error) => {
                    tracing::debug!(%error, "sending a DNS answer");
                    metadata.response_code = ResponseCode::ServFail;
                    ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
                }
            }
        })
    }
}
