/*
 * sipblast - SIP load generator for registrars and proxies, one thread, Linux (peer rig).
 *
 *   gcc -O2 -Wall -o sipblast sipblast.c -lm
 *   ./sipblast register 127.0.0.1:5090 --seconds 10 --window 64
 *
 * Modes
 *   register    REGISTER, 401, REGISTER with digest, 200        (one op)
 *   refresh     REGISTER with the nonce of the last challenge, 200
 *   unregister  like refresh, Expires: 0
 *   call        INVITE 100 180 200 ACK BYE 200; both phones are in here
 *   message     MESSAGE 200; both phones are in here
 *   options     OPTIONS 200: the floor of what the server does per request
 *
 * Closed loop (--window N outstanding) finds the most a server can do; open
 * loop (--rate R a second) finds what it can do without loss.  Requests over
 * UDP are sent again after 0.5, 1, 2 ... s and given up after --giveup s;
 * ops_resent counts the operations that worked, but only with a resend.
 *
 * The result is one JSON line on stdout.  With --sync the program prints
 * PRIMED before the measured part and DONE after it, and waits for a line on
 * stdin each time, so that a caller can read the server's counters in between.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MSG_MAX 2800
#define BATCH 64
#define TCP_IN 65536

enum mode { REGISTER, REFRESH, UNREGISTER, CALL, MESSAGE, OPTIONS };
static const char *mode_name[] = {"register", "refresh", "unregister", "call", "message", "options"};

/* ---- settings ---------------------------------------------------------- */

static enum mode mode;
static struct sockaddr_in target;
static char host[64];
static int target_port;
static uint32_t users = 10000, user_base = 0, among = 0;
static double rate = 0, seconds = 10, giveup = 8, talk = 0;
static int window = 64;
static uint64_t count_limit = 0;
static int n_socks = 8, port_base = 0, use_tcp = 0, use_tls = 0, sync_io = 0, expires_s = 3600, no_prime = 0;
static const char *password = "secret", *domain = NULL, *app_id = "com.example.app";
static uint32_t run_id;

static void die(const char *fmt, ...) {
	va_list ap;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* ---- MD5, from the description in RFC 1321 ----------------------------- */

static uint32_t md5_k[64];
static const uint8_t md5_shift[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

static void md5_setup(void) {
	for (int i = 0; i < 64; i++) md5_k[i] = (uint32_t)(int64_t)(fabs(sin(i + 1.0)) * 4294967296.0);
}

static void md5_block(uint32_t h[4], const uint8_t *p) {
	uint32_t w[16], a = h[0], b = h[1], c = h[2], d = h[3];
	memcpy(w, p, 64);
	for (int i = 0; i < 64; i++) {
		uint32_t f;
		int g, round = i >> 4;
		if (round == 0) { f = (b & c) | (~b & d); g = i; }
		else if (round == 1) { f = (d & b) | (~d & c); g = (5 * i + 1) & 15; }
		else if (round == 2) { f = b ^ c ^ d; g = (3 * i + 5) & 15; }
		else { f = c ^ (b | ~d); g = (7 * i) & 15; }
		uint32_t x = a + f + md5_k[i] + w[g], s = md5_shift[round][i & 3];
		a = d; d = c; c = b;
		b += (x << s) | (x >> (32 - s));
	}
	h[0] += a; h[1] += b; h[2] += c; h[3] += d;
}

/* lower-case hex digest of a short string; out takes 33 bytes */
static void md5_hex(const char *s, size_t n, char *out) {
	uint32_t h[4] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u};
	uint8_t tail[128] = {0};
	size_t full = n & ~(size_t)63, rest = n - full;
	for (size_t i = 0; i < full; i += 64) md5_block(h, (const uint8_t *)s + i);
	memcpy(tail, s + full, rest);
	tail[rest] = 0x80;
	size_t pad = rest < 56 ? 64 : 128;
	uint64_t bits = (uint64_t)n * 8;
	memcpy(tail + pad - 8, &bits, 8);
	for (size_t i = 0; i < pad; i += 64) md5_block(h, tail + i);
	static const char hex[] = "0123456789abcdef";
	const uint8_t *b = (const uint8_t *)h;
	for (int i = 0; i < 16; i++) { out[2 * i] = hex[b[i] >> 4]; out[2 * i + 1] = hex[b[i] & 15]; }
	out[32] = 0;
}

/* ---- endpoints: UDP sockets, or TCP connections with or without TLS ------- */

struct end {
	int fd, port, is_uas;
	/* UDP: a batch waiting for sendmmsg */
	int n_out;
	char (*out)[MSG_MAX];
	int out_len[BATCH];
	struct sockaddr_in out_to[BATCH];
	/* TCP: byte streams */
	SSL *ssl;
	char *in;
	int in_len;
	char *tout;
	int tout_len, tout_cap;
};

static struct end *ends;
static int n_ends, n_uac;
static int epfd;

static struct mmsghdr rx[BATCH];
static struct iovec rx_iov[BATCH];
static struct sockaddr_in rx_from[BATCH];
static char rx_buf[BATCH][MSG_MAX + 4];

static uint64_t send_errors, stray;
static SSL_CTX *tls_ctx;

/* what SSL_read or SSL_write returned, as recv or send would have */
static ssize_t tls_result(struct end *e, int r) {
	if (r > 0) return r;
	int why = SSL_get_error(e->ssl, r);
	if (why == SSL_ERROR_ZERO_RETURN) return 0;
	errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
	return -1;
}

static ssize_t stream_send(struct end *e, const char *b, int n) {
	return e->ssl ? tls_result(e, SSL_write(e->ssl, b, n)) : send(e->fd, b, n, MSG_NOSIGNAL);
}

static ssize_t stream_recv(struct end *e, char *b, int n) {
	return e->ssl ? tls_result(e, SSL_read(e->ssl, b, n)) : recv(e->fd, b, n, 0);
}

static void shake_hands(struct end *e) {
	if (!tls_ctx) {
		signal(SIGPIPE, SIG_IGN); /* SSL_write has no MSG_NOSIGNAL */
		tls_ctx = SSL_CTX_new(TLS_client_method());
		SSL_CTX_set_mode(tls_ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	}
	e->ssl = SSL_new(tls_ctx);
	SSL_set_fd(e->ssl, e->fd);
	if (SSL_connect(e->ssl) != 1) die("the TLS handshake failed");
}

static void flush_end(struct end *e) {
	if (use_tcp) {
		while (e->tout_len) {
			ssize_t r = stream_send(e, e->tout, e->tout_len);
			if (r <= 0) {
				if (r < 0 && errno != EAGAIN) { send_errors++; e->tout_len = 0; }
				return;
			}
			memmove(e->tout, e->tout + r, e->tout_len - r);
			e->tout_len -= r;
		}
		return;
	}
	struct mmsghdr m[BATCH];
	struct iovec v[BATCH];
	int done = 0;
	for (int i = 0; i < e->n_out; i++) {
		v[i] = (struct iovec){e->out[i], e->out_len[i]};
		memset(&m[i], 0, sizeof m[i]);
		m[i].msg_hdr.msg_iov = &v[i];
		m[i].msg_hdr.msg_iovlen = 1;
		m[i].msg_hdr.msg_name = &e->out_to[i];
		m[i].msg_hdr.msg_namelen = sizeof e->out_to[i];
	}
	while (done < e->n_out) {
		int r = sendmmsg(e->fd, m + done, e->n_out - done, 0);
		if (r <= 0) { send_errors++; done++; } else done += r;
	}
	e->n_out = 0;
}

static void put(struct end *e, const char *msg, int len, const struct sockaddr_in *to) {
	if (use_tcp) {
		if (e->tout_len + len > e->tout_cap) {
			e->tout_cap = (e->tout_len + len) * 2;
			e->tout = realloc(e->tout, e->tout_cap);
		}
		memcpy(e->tout + e->tout_len, msg, len);
		e->tout_len += len;
		return;
	}
	if (e->n_out == BATCH) flush_end(e);
	memcpy(e->out[e->n_out], msg, len);
	e->out_len[e->n_out] = len;
	e->out_to[e->n_out++] = to ? *to : target;
}

static void open_end(struct end *e, int is_uas, int want_port) {
	memset(e, 0, sizeof *e);
	e->is_uas = is_uas;
	e->fd = socket(AF_INET, use_tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
	if (e->fd < 0) die("socket: %s", strerror(errno));
	int on = 1, size = 4 << 20;
	setsockopt(e->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (!use_tcp) {
		setsockopt(e->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
		setsockopt(e->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	}
	struct sockaddr_in me = {.sin_family = AF_INET, .sin_port = htons(want_port)};
	me.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	socklen_t sl = sizeof me;
	if (bind(e->fd, (void *)&me, sizeof me) < 0) die("bind %d: %s", want_port, strerror(errno));
	if (use_tcp) {
		if (connect(e->fd, (void *)&target, sizeof target) < 0) die("connect: %s", strerror(errno));
		setsockopt(e->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		if (use_tls) shake_hands(e);
		e->in = malloc(TCP_IN);
	} else
		e->out = malloc(sizeof *e->out * BATCH);
	getsockname(e->fd, (void *)&me, &sl);
	e->port = ntohs(me.sin_port);
	fcntl(e->fd, F_SETFL, O_NONBLOCK);
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = e};
	epoll_ctl(epfd, EPOLL_CTL_ADD, e->fd, &ev);
}

/* ---- reading a message --------------------------------------------------- */

struct str { const char *s; int n; };
struct sip {
	int code; /* 0 for a request */
	struct str method, via[6], rr[6], from, to, callid, cseq, contact, challenge[3];
	int n_via, n_rr, n_chal, challenge_is_proxy, content_length;
};

static int is_hdr(const char *s, int n, const char *name, char compact) {
	int l = strlen(name);
	if (n == 1 && compact) return (s[0] | 32) == compact;
	return n == l && !strncasecmp(s, name, l);
}

/* buf must be NUL-terminated; returns the length of the header part or -1 */
static int parse(const char *buf, int len, struct sip *m) {
	memset(m, 0, sizeof *m);
	const char *p = buf, *end = buf + len, *eol = memchr(p, '\n', len);
	if (!eol || len < 12) return -1;
	if (!memcmp(p, "SIP/2.0 ", 8)) m->code = atoi(p + 8);
	else {
		const char *sp = memchr(p, ' ', eol - p);
		if (!sp) return -1;
		m->method = (struct str){p, sp - p};
	}
	for (p = eol + 1; p < end; p = eol + 1) {
		eol = memchr(p, '\n', end - p);
		if (!eol) return -1;
		int n = eol - p;
		if (n && p[n - 1] == '\r') n--;
		if (!n) return eol + 1 - buf;
		const char *colon = memchr(p, ':', n);
		if (!colon) continue;
		int hn = colon - p;
		while (hn && (p[hn - 1] == ' ' || p[hn - 1] == '\t')) hn--;
		const char *v = colon + 1;
		while (v < p + n && (*v == ' ' || *v == '\t')) v++;
		struct str val = {v, p + n - v};
		switch (p[0] | 32) {
		case 'v': if (is_hdr(p, hn, "Via", 'v') && m->n_via < 6) m->via[m->n_via++] = val; break;
		case 'r': if (is_hdr(p, hn, "Record-Route", 0) && m->n_rr < 6) m->rr[m->n_rr++] = val; break;
		case 'f': if (is_hdr(p, hn, "From", 'f')) m->from = val; break;
		case 't': if (is_hdr(p, hn, "To", 't')) m->to = val; break;
		case 'i': if (is_hdr(p, hn, "i", 'i')) m->callid = val; break;
		case 'm': if (is_hdr(p, hn, "m", 'm')) m->contact = val; break;
		case 'l': if (is_hdr(p, hn, "l", 'l')) m->content_length = atoi(v); break;
		case 'c':
			if (is_hdr(p, hn, "Call-ID", 0)) m->callid = val;
			else if (is_hdr(p, hn, "CSeq", 0)) m->cseq = val;
			else if (is_hdr(p, hn, "Contact", 0)) m->contact = val;
			else if (is_hdr(p, hn, "Content-Length", 0)) m->content_length = atoi(v);
			break;
		case 'w':
		case 'p':
			if (m->n_chal < 3 && (is_hdr(p, hn, "WWW-Authenticate", 0) || is_hdr(p, hn, "Proxy-Authenticate", 0))) {
				m->challenge_is_proxy = (p[0] | 32) == 'p';
				m->challenge[m->n_chal++] = val;
			}
			break;
		}
	}
	return -1;
}

static const char *find(struct str s, const char *what) {
	return memmem(s.s, s.n, what, strlen(what));
}

/* value of name=... in a comma-separated challenge */
static int param(struct str s, const char *name, char *out, int cap) {
	int l = strlen(name);
	out[0] = 0;
	for (const char *p = s.s; p + l + 1 < s.s + s.n; p++) {
		if (strncasecmp(p, name, l) || p[l] != '=' || (p > s.s && p[-1] != ' ' && p[-1] != ',' && p[-1] != '\t')) continue;
		p += l + 1;
		const char *e = s.s + s.n, *q;
		if (*p == '"') { p++; q = memchr(p, '"', e - p); }
		else { q = memchr(p, ',', e - p); }
		if (!q) q = e;
		int n = q - p < cap - 1 ? q - p : cap - 1;
		memcpy(out, p, n);
		out[n] = 0;
		return 1;
	}
	return 0;
}

/* ---- users and operations ------------------------------------------------ */

struct cred { char nonce[160], realm[64], opaque[64]; int qop; uint32_t nc; };
struct user { struct cred cred; uint32_t cseq; };
static struct user *user_tab;

/* the number of a user; --among scatters them by a large prime */
static uint32_t number_of(uint32_t user) {
	uint64_t n = (uint64_t)user_base + user;
	return among ? n * 2654435761u % among : n;
}

enum step { IDLE, FIRST, AUTHED, INVITE, TALK, BYE };
struct op {
	uint32_t seq, user;
	enum step step;
	int attempt, resends, end;
	double start, next_send, gap, deadline;
	int len, ack_len;
	char req[MSG_MAX], ack[MSG_MAX];
	int got_ring, proxy_auth;
	struct cred cred; /* call, message */
	/* the called phone's side */
	int uas_wait_ack, uas_len, uas_end;
	struct sockaddr_in uas_to;
	double uas_next, uas_gap;
	char uas[MSG_MAX];
};
static struct op *ops;
static int *free_ops, n_free, n_slots;

static uint64_t started, ok, failed, resent_ops, resends, rechallenged, overrun, uas_resends;
static uint64_t codes[700];
static uint32_t *lat, *lat_setup;
static size_t n_lat, cap_lat, n_setup, cap_setup;
static int priming;
static enum mode op_mode;
static uint32_t next_user;

static void note(uint32_t **a, size_t *n, size_t *cap, double d) {
	if (priming) return;
	if (*n == *cap) { *cap = *cap ? *cap * 2 : 1 << 16; *a = realloc(*a, *cap * sizeof **a); }
	(*a)[(*n)++] = d * 1e6;
}

static int add(char *b, int at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int add(char *b, int at, const char *fmt, ...) {
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(b + at, MSG_MAX - at, fmt, ap);
	va_end(ap);
	if (at + n >= MSG_MAX) die("message too long");
	return at + n;
}

static int add_auth(char *b, int at, struct cred *c, int proxy, uint32_t u, const char *method, const char *uri) {
	char ha1[33], ha2[33], resp[33], t[512];
	md5_hex(t, sprintf(t, "u%06u:%s:%s", u, c->realm, password), ha1);
	md5_hex(t, sprintf(t, "%s:%s", method, uri), ha2);
	c->nc++;
	if (c->qop) md5_hex(t, sprintf(t, "%s:%s:%08x:5ca1ab1e:auth:%s", ha1, c->nonce, c->nc, ha2), resp);
	else md5_hex(t, sprintf(t, "%s:%s:%s", ha1, c->nonce, ha2), resp);
	at = add(b, at, "%s: Digest username=\"u%06u\", realm=\"%s\", nonce=\"%s\", uri=\"%s\", response=\"%s\", algorithm=MD5",
		proxy ? "Proxy-Authorization" : "Authorization", u, c->realm, c->nonce, uri, resp);
	if (c->qop) at = add(b, at, ", qop=auth, nc=%08x, cnonce=\"5ca1ab1e\"", c->nc);
	if (c->opaque[0]) at = add(b, at, ", opaque=\"%s\"", c->opaque);
	return add(b, at, "\r\n");
}

static int take_challenge(const struct sip *m, struct cred *c) {
	for (int i = 0; i < m->n_chal; i++) {
		char alg[24], qop[32];
		param(m->challenge[i], "algorithm", alg, sizeof alg);
		if (alg[0] && strcasecmp(alg, "MD5")) continue;
		param(m->challenge[i], "realm", c->realm, sizeof c->realm);
		param(m->challenge[i], "opaque", c->opaque, sizeof c->opaque);
		c->qop = param(m->challenge[i], "qop", qop, sizeof qop) && strstr(qop, "auth");
		c->nc = 0;
		return param(m->challenge[i], "nonce", c->nonce, sizeof c->nonce);
	}
	return 0;
}

static const char *tp(void) { return use_tls ? "TLS" : use_tcp ? "TCP" : "UDP"; }
static const char *uri_tail(void) { return use_tls ? ";transport=tls" : use_tcp ? ";transport=tcp" : ""; }

/* start line up to Max-Forwards of a request that opens a transaction */
static int add_head(char *b, struct op *o, const char *method, const char *uri, const struct end *e) {
	int at = add(b, 0, "%s %s SIP/2.0\r\n", method, uri);
	return add(b, at, "Via: SIP/2.0/%s 127.0.0.1:%d;branch=z9hG4bKsb-%x-%x-%x-%x;rport\r\nMax-Forwards: 70\r\n", tp(), e->port,
		(unsigned)(o - ops), o->seq, (unsigned)o->attempt, run_id);
}

static void send_op(struct op *o) {
	double t = now();
	put(&ends[o->end], o->req, o->len, NULL);
	o->gap = 0.5;
	o->next_send = use_tcp ? 1e18 : t + o->gap;
}

static int with_push(char *b, int at, uint32_t u) {
	return add(b, at, "X-Push: device-os=ios;device-uid=%08x%08x%08x%08x%08x%08x%08x%08x;allow-call-push=true;"
		"allow-message-push=true;app-id=%s\r\n", u * 2654435761u, u ^ 0x9e3779b9u, u * 40503u, u + 77u, u * 69069u, ~u, u * 7919u, u, app_id);
}

static void send_register(struct op *o, int authed) {
	struct user *x = &user_tab[o->user];
	uint32_t u = number_of(o->user);
	char uri[96];
	sprintf(uri, "sip:%s", domain);
	/* in call and message mode the binding points at the called side */
	struct end *e = &ends[o->end];
	o->attempt++;
	int at = add_head(o->req, o, "REGISTER", uri, e);
	at = add(o->req, at, "From: \"User %u\" <sip:u%06u@%s>;tag=f%x-%x\r\nTo: <sip:u%06u@%s>\r\nCall-ID: r%06u-%08x@sipblast\r\nCSeq: %u REGISTER\r\n",
		u, u, domain, (unsigned)(o - ops), o->seq, u, domain, u, run_id, ++x->cseq);
	at = add(o->req, at, "Contact: <sip:u%06u@127.0.0.1:%d%s>\r\nExpires: %d\r\nUser-Agent: sipblast softphone 1.0\r\n"
		"Allow: INVITE, ACK, CANCEL, BYE, MESSAGE, OPTIONS, INFO, UPDATE, PRACK, REFER, NOTIFY\r\nSupported: path, outbound\r\n",
		u, e->port, uri_tail(), op_mode == UNREGISTER ? 0 : expires_s);
	at = with_push(o->req, at, u);
	if (authed) at = add_auth(o->req, at, &x->cred, o->proxy_auth, u, "REGISTER", uri);
	o->len = add(o->req, at, "Content-Length: 0\r\n\r\n");
	o->step = authed ? AUTHED : FIRST;
	send_op(o);
}

static void send_invite(struct op *o, int authed) {
	uint32_t callee = number_of(o->user), caller = number_of(users + o->user);
	struct end *e = &ends[o->end];
	const char *method = op_mode == CALL ? "INVITE" : "MESSAGE";
	char uri[96], body[400];
	sprintf(uri, "sip:u%06u@%s", callee, domain);
	o->attempt++;
	int at = add_head(o->req, o, method, uri, e);
	at = add(o->req, at, "From: \"User %u\" <sip:u%06u@%s>;tag=c%x-%x\r\nTo: <%s>\r\nCall-ID: k-%x-%x-%08x@sipblast\r\nCSeq: %d %s\r\n",
		caller, caller, domain, (unsigned)(o - ops), o->seq, uri, (unsigned)(o - ops), o->seq, run_id, o->attempt, method);
	at = add(o->req, at, "Contact: <sip:u%06u@127.0.0.1:%d%s>\r\nUser-Agent: sipblast softphone 1.0\r\n", caller, e->port, uri_tail());
	if (authed) at = add_auth(o->req, at, &o->cred, o->proxy_auth, caller, method, uri);
	int bl;
	if (op_mode == CALL) {
		at = add(o->req, at, "Allow: INVITE, ACK, CANCEL, BYE, MESSAGE, OPTIONS, INFO, UPDATE\r\nContent-Type: application/sdp\r\n");
		bl = sprintf(body, "v=0\r\no=- %u 1 IN IP4 127.0.0.1\r\ns=call\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0 8 101\r\n"
			"a=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=sendrecv\r\n", o->seq);
	} else {
		at = add(o->req, at, "Content-Type: text/plain\r\n");
		bl = sprintf(body, "hello number %u from u%06u, this is a short text message", o->seq, caller);
	}
	o->len = add(o->req, at, "Content-Length: %d\r\n\r\n%s", bl, body);
	o->step = INVITE;
	send_op(o);
}

static void send_options(struct op *o) {
	uint32_t u = number_of(o->user);
	struct end *e = &ends[o->end];
	char uri[96];
	sprintf(uri, "sip:%s", domain);
	o->attempt++;
	int at = add_head(o->req, o, "OPTIONS", uri, e);
	o->len = add(o->req, at, "From: <sip:u%06u@%s>;tag=c%x-%x\r\nTo: <%s>\r\nCall-ID: o-%x-%x-%08x@sipblast\r\nCSeq: %d OPTIONS\r\nContent-Length: 0\r\n\r\n",
		u, domain, (unsigned)(o - ops), o->seq, uri, (unsigned)(o - ops), o->seq, run_id, o->attempt);
	o->step = FIRST;
	send_op(o);
}

static void begin(void) {
	struct op *o = &ops[free_ops[--n_free]];
	uint32_t seq = o->seq + 1;
	double t = now();
	o->seq = seq;
	o->user = next_user++ % users;
	o->attempt = 0;
	o->resends = 0;
	o->got_ring = o->proxy_auth = 0;
	o->uas_wait_ack = 0;
	o->ack_len = 0;
	o->start = t;
	o->deadline = t + giveup;
	/* a user always talks through the same socket, so its contact is stable */
	int uas = n_ends - n_uac;
	o->end = priming && (mode == CALL || mode == MESSAGE) ? n_uac + o->user % uas : o->user % n_uac;
	started++;
	switch (op_mode) {
	case REGISTER: send_register(o, 0); break;
	case REFRESH:
	case UNREGISTER: send_register(o, user_tab[o->user].cred.nonce[0] != 0); break;
	case CALL:
	case MESSAGE: send_invite(o, 0); break;
	case OPTIONS: send_options(o); break;
	}
}

static void finish(struct op *o, int good) {
	if (o->step == IDLE) return;
	if (good) {
		ok++;
		note(&lat, &n_lat, &cap_lat, now() - o->start);
		if (o->resends) resent_ops++;
	} else
		failed++;
	o->step = IDLE;
	o->uas_wait_ack = 0;
	free_ops[n_free++] = o - ops;
}

/* URI between < and >, or up to the first ; */
static struct str uri_of(struct str h) {
	const char *a = memchr(h.s, '<', h.n);
	if (a) {
		const char *z = memchr(a, '>', h.s + h.n - a);
		if (z) return (struct str){a + 1, z - a - 1};
	}
	const char *semi = memchr(h.s, ';', h.n);
	return (struct str){h.s, semi ? semi - h.s : h.n};
}

/* Route headers from the Record-Routes of a response, last one first */
static int add_routes(char *b, int at, const struct sip *m) {
	for (int i = m->n_rr - 1; i >= 0; i--) {
		/* one header may hold several routes; each stands between < and > */
		const char *s = m->rr[i].s, *e = s + m->rr[i].n;
		while (e > s) {
			const char *lt = memrchr(s, '<', e - s);
			if (!lt) break;
			const char *gt = memchr(lt, '>', e - lt);
			if (!gt) break;
			at = add(b, at, "Route: %.*s\r\n", (int)(gt - lt + 1), lt);
			e = lt;
		}
	}
	return at;
}

static void in_dialog(struct op *o, const struct sip *m, const char *method, char *buf, int *len) {
	struct str to = uri_of(m->contact);
	char uri[200];
	snprintf(uri, sizeof uri, "%.*s", to.n, to.s);
	o->attempt++;
	int at = add_head(buf, o, method, uri, &ends[o->end]);
	at = add_routes(buf, at, m);
	*len = add(buf, at, "From: %.*s\r\nTo: %.*s\r\nCall-ID: %.*s\r\nCSeq: %d %s\r\nContent-Length: 0\r\n\r\n", m->from.n, m->from.s,
		m->to.n, m->to.s, m->callid.n, m->callid.s, strcmp(method, "ACK") ? atoi(m->cseq.s) + 1 : atoi(m->cseq.s), method);
}

static int cseq_is(const struct sip *m, const char *method) {
	return m->cseq.n > (int)strlen(method) && !memcmp(m->cseq.s + m->cseq.n - strlen(method), method, strlen(method));
}

/* the ACK for a failed INVITE: same branch, same Request-URI */
static void ack_failure(struct op *o, const struct sip *m) {
	char b[MSG_MAX];
	const char *sp = strchr(o->req, ' ') + 1, *sp2 = strchr(sp, ' ');
	int at = add(b, 0, "ACK %.*s SIP/2.0\r\nVia: %.*s\r\nMax-Forwards: 70\r\nFrom: %.*s\r\nTo: %.*s\r\nCall-ID: %.*s\r\nCSeq: %d ACK\r\nContent-Length: 0\r\n\r\n",
		(int)(sp2 - sp), sp, m->via[0].n, m->via[0].s, m->from.n, m->from.s, m->to.n, m->to.s, m->callid.n, m->callid.s, atoi(m->cseq.s));
	put(&ends[o->end], b, at, NULL);
}

static void on_response(struct sip *m) {
	unsigned slot, seq, attempt, run;
	const char *br = m->n_via ? find(m->via[0], "z9hG4bKsb-") : NULL;
	if (!br || sscanf(br + 10, "%x-%x-%x-%x", &slot, &seq, &attempt, &run) != 4 || run != run_id || (int)slot >= n_slots) { stray++; return; }
	struct op *o = &ops[slot];
	if (o->seq != seq || o->step == IDLE) return;
	int is_invite = cseq_is(m, "INVITE");
	if (is_invite && m->code >= 200 && m->code < 300 && o->step != INVITE) {
		/* the called side sent its 200 again: the ACK went missing */
		if (o->ack_len) put(&ends[o->end], o->ack, o->ack_len, NULL);
		return;
	}
	if ((int)attempt != o->attempt) return;
	if (m->code < 200) {
		if (is_invite) {
			o->next_send = 1e18;
			if (m->code == 180 && !o->got_ring) o->got_ring = 1;
		}
		return;
	}
	if (m->code < 700 && !priming) codes[m->code]++;
	if (is_invite && m->code >= 300) ack_failure(o, m);
	if (m->code == 401 || m->code == 407) {
		int is_reg = op_mode <= UNREGISTER;
		struct cred *c = is_reg ? &user_tab[o->user].cred : &o->cred;
		if (o->attempt >= 3 || !take_challenge(m, c)) { finish(o, 0); return; }
		o->proxy_auth = m->challenge_is_proxy;
		if (is_reg) {
			if (o->step == AUTHED && !priming) rechallenged++;
			send_register(o, 1);
		} else send_invite(o, 1);
		return;
	}
	if (m->code >= 300) { finish(o, 0); return; }
	if (o->step == INVITE && op_mode == CALL) {
		note(&lat_setup, &n_setup, &cap_setup, now() - o->start);
		in_dialog(o, m, "ACK", o->ack, &o->ack_len);
		put(&ends[o->end], o->ack, o->ack_len, NULL);
		in_dialog(o, m, "BYE", o->req, &o->len);
		if (talk > 0) { o->step = TALK; o->next_send = now() + talk; o->deadline = o->next_send + giveup; }
		else { o->step = BYE; send_op(o); }
		return;
	}
	finish(o, 1);
}

/* answer a request as the called phone */
static int reply(char *b, const struct sip *m, const char *status, int with_rr, int with_contact, int port, unsigned tag) {
	int at = add(b, 0, "SIP/2.0 %s\r\n", status);
	for (int i = 0; i < m->n_via; i++) at = add(b, at, "Via: %.*s\r\n", m->via[i].n, m->via[i].s);
	for (int i = 0; with_rr && i < m->n_rr; i++) at = add(b, at, "Record-Route: %.*s\r\n", m->rr[i].n, m->rr[i].s);
	at = add(b, at, "From: %.*s\r\nTo: %.*s", m->from.n, m->from.s, m->to.n, m->to.s);
	if (!find(m->to, ";tag=")) at = add(b, at, ";tag=a%x", tag);
	at = add(b, at, "\r\nCall-ID: %.*s\r\nCSeq: %.*s\r\n", m->callid.n, m->callid.s, m->cseq.n, m->cseq.s);
	if (with_contact) at = add(b, at, "Contact: <sip:callee@127.0.0.1:%d%s>\r\n", port, uri_tail());
	return at;
}

static void on_request(struct end *e, struct sip *m, const struct sockaddr_in *from) {
	static const char sdp[] = "v=0\r\no=- 2 1 IN IP4 127.0.0.1\r\ns=call\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40002 RTP/AVP 0\r\na=sendrecv\r\n";
	unsigned slot = 0, seq = 0, run = 0;
	if (m->callid.n < 2 || sscanf(m->callid.s, "k-%x-%x-%x", &slot, &seq, &run) != 3 || run != run_id || (int)slot >= n_slots) {
		if (m->method.n == 7 && !memcmp(m->method.s, "OPTIONS", 7)) {
			char b[MSG_MAX];
			int at = reply(b, m, "200 OK", 0, 0, 0, 1);
			put(e, b, add(b, at, "Content-Length: 0\r\n\r\n"), from);
		} else stray++;
		return;
	}
	struct op *o = &ops[slot];
	char b[MSG_MAX];
	int at;
	if (m->method.n == 6 && !memcmp(m->method.s, "INVITE", 6)) {
		if (o->seq != seq || o->step == IDLE) return;
		at = reply(b, m, "180 Ringing", 1, 1, e->port, seq);
		put(e, b, add(b, at, "Content-Length: 0\r\n\r\n"), from);
		at = reply(o->uas, m, "200 OK", 1, 1, e->port, seq);
		o->uas_len = add(o->uas, at, "Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", (int)sizeof sdp - 1, sdp);
		put(e, o->uas, o->uas_len, from);
		o->uas_wait_ack = 1;
		o->uas_end = e - ends;
		if (from) o->uas_to = *from;
		o->uas_gap = 0.5;
		o->uas_next = use_tcp ? 1e18 : now() + 0.5;
	} else if (m->method.n == 3 && !memcmp(m->method.s, "ACK", 3)) {
		if (o->seq == seq) o->uas_wait_ack = 0;
	} else {
		at = reply(b, m, "200 OK", 0, 0, 0, seq);
		put(e, b, add(b, at, "Content-Length: 0\r\n\r\n"), from);
	}
}

static void on_message(struct end *e, const char *buf, int len, const struct sockaddr_in *from) {
	struct sip m;
	if (parse(buf, len, &m) < 0) { stray++; return; }
	if (m.code) on_response(&m);
	else on_request(e, &m, from);
}

static void read_udp(struct end *e) {
	for (;;) {
		for (int i = 0; i < BATCH; i++) {
			rx_iov[i] = (struct iovec){rx_buf[i], MSG_MAX};
			memset(&rx[i], 0, sizeof rx[i]);
			rx[i].msg_hdr.msg_iov = &rx_iov[i];
			rx[i].msg_hdr.msg_iovlen = 1;
			rx[i].msg_hdr.msg_name = &rx_from[i];
			rx[i].msg_hdr.msg_namelen = sizeof rx_from[i];
		}
		int n = recvmmsg(e->fd, rx, BATCH, MSG_DONTWAIT, NULL);
		if (n <= 0) return;
		for (int i = 0; i < n; i++) {
			rx_buf[i][rx[i].msg_len] = 0;
			on_message(e, rx_buf[i], rx[i].msg_len, &rx_from[i]);
		}
		if (n < BATCH) return;
	}
}

static void read_tcp(struct end *e) {
	for (;;) {
		ssize_t r = stream_recv(e, e->in + e->in_len, TCP_IN - 1 - e->in_len);
		if (r == 0) die("the server closed a connection");
		if (r < 0) return;
		e->in_len += r;
		int at = 0;
		while (at < e->in_len) {
			char *p = e->in + at;
			int left = e->in_len - at;
			if (*p == '\r' || *p == '\n') { at++; continue; }
			char *h = memmem(p, left, "\r\n\r\n", 4);
			if (!h) break;
			struct sip m;
			char keep = h[4];
			h[4] = 0;
			int hl = parse(p, h + 4 - p, &m);
			h[4] = keep;
			if (hl < 0) die("unreadable message on TCP");
			if (left < hl + m.content_length) break;
			if (m.code) on_response(&m);
			else on_request(e, &m, NULL);
			at += hl + m.content_length;
		}
		memmove(e->in, e->in + at, e->in_len - at);
		e->in_len -= at;
	}
}

static void timers(double t) {
	for (int i = 0; i < n_slots; i++) {
		struct op *o = &ops[i];
		if (o->step == IDLE) continue;
		if (o->step == TALK) {
			if (t >= o->next_send) { o->step = BYE; send_op(o); }
		} else if (t >= o->deadline) { finish(o, 0); continue; }
		else if (t >= o->next_send) {
			put(&ends[o->end], o->req, o->len, NULL);
			o->resends++;
			if (!priming) resends++;
			o->gap = o->gap < 4 ? o->gap * 2 : 4;
			o->next_send = t + o->gap;
		}
		if (o->uas_wait_ack && t >= o->uas_next) {
			put(&ends[o->uas_end], o->uas, o->uas_len, &o->uas_to);
			if (!priming) uas_resends++;
			o->resends++;
			o->uas_gap = o->uas_gap < 4 ? o->uas_gap * 2 : 4;
			o->uas_next = t + o->uas_gap;
		}
	}
}

/* run until `limit` operations have begun or `secs` have passed, then drain */
static double drive(double r, int win, uint64_t limit, double secs) {
	double t0 = now(), stop = t0 + secs, last_timer = t0, last_end = t0;
	uint64_t begun = 0, ok0 = ok;
	struct epoll_event ev[128];
	for (;;) {
		double t = now();
		int open = t < stop && (!limit || begun < limit) && !(priming && failed);
		if (open) {
			if (r > 0) {
				uint64_t due = (uint64_t)((t - t0) * r);
				while (begun < due && (!limit || begun < limit)) {
					if (!n_free) { overrun++; begun++; continue; }
					begin();
					begun++;
				}
			} else
				while (n_slots - n_free < win && (!limit || begun < limit)) { begin(); begun++; }
		} else if (n_free == n_slots) break;
		for (int i = 0; i < n_ends; i++)
			if (ends[i].n_out || ends[i].tout_len) flush_end(&ends[i]);
		struct timespec wait = {0, r > 0 ? 400000 : 5000000};
		int n = epoll_pwait2(epfd, ev, 128, &wait, NULL);
		for (int i = 0; i < n; i++) (use_tcp ? read_tcp : read_udp)(ev[i].data.ptr);
		t = now();
		if (ok != ok0) { ok0 = ok; last_end = t; }
		if (t - last_timer > 0.01) { timers(t); last_timer = t; }
	}
	for (int i = 0; i < n_ends; i++) flush_end(&ends[i]);
	return last_end - t0;
}

static int by_value(const void *a, const void *b) {
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}
static double pct(uint32_t *a, size_t n, double p) {
	if (!n) return 0;
	size_t i = (size_t)(p * n);
	return a[i < n ? i : n - 1] / 1000.0;
}

static void meet(const char *word) {
	char line[64];
	if (!sync_io) return;
	printf("%s\n", word);
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin)) exit(1);
}

static void usage(void) {
	die("usage: sipblast register|refresh|unregister|call|message|options HOST:PORT [options]\n"
		"  --users N (10000)    how many users; call and message need the next N as callers\n"
		"  --base N (0)         number of the first user, u%%06d\n"
		"  --among N            users scattered evenly among N, not N that follow each other\n"
		"  --password P (secret)  --domain D (HOST)  --app-id A\n"
		"  --window N (64)      closed loop: N operations outstanding\n"
		"  --rate R             open loop: R operations a second\n"
		"  --seconds S (10)  --count N   whichever ends first\n"
		"  --talk S (0)         time between ACK and BYE\n"
		"  --giveup S (8)       an operation unfinished after this has failed\n"
		"  --sockets N (8)      source sockets, or connections with --tcp or --tls\n"
		"  --port-base P        bind them to P, P+1, ... (contacts stay the same from run to run)\n"
		"  --tcp  --tls  --expires S (3600)  --no-prime  --sync");
}

int main(int argc, char **argv) {
	if (argc < 3) usage();
	int m;
	for (m = 0; m < 6 && strcmp(argv[1], mode_name[m]); m++) ;
	if (m == 6) usage();
	mode = m;
	char *colon = strrchr(argv[2], ':');
	if (!colon) usage();
	snprintf(host, sizeof host, "%.*s", (int)(colon - argv[2]), argv[2]);
	target_port = atoi(colon + 1);
	target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(target_port)};
	if (inet_pton(AF_INET, host, &target.sin_addr) != 1) die("HOST must be an IPv4 address");

	static const struct option long_opts[] = {
		{"users", 1, 0, 'u'}, {"base", 1, 0, 'b'}, {"among", 1, 0, 'A'}, {"password", 1, 0, 'P'}, {"domain", 1, 0, 'd'}, {"app-id", 1, 0, 'a'},
		{"window", 1, 0, 'w'}, {"rate", 1, 0, 'r'}, {"seconds", 1, 0, 's'}, {"count", 1, 0, 'c'}, {"talk", 1, 0, 't'},
		{"giveup", 1, 0, 'g'}, {"sockets", 1, 0, 'n'}, {"port-base", 1, 0, 'p'}, {"tcp", 0, 0, 'T'}, {"tls", 0, 0, 'L'}, {"expires", 1, 0, 'e'},
		{"no-prime", 0, 0, 'N'}, {"sync", 0, 0, 'S'}, {0}};
	optind = 3;
	for (int c; (c = getopt_long(argc, argv, "", long_opts, NULL)) != -1;) switch (c) {
	case 'u': users = atoi(optarg); break;
	case 'b': user_base = atoi(optarg); break;
	case 'A': among = atoi(optarg); break;
	case 'P': password = optarg; break;
	case 'd': domain = optarg; break;
	case 'a': app_id = optarg; break;
	case 'w': window = atoi(optarg); break;
	case 'r': rate = atof(optarg); break;
	case 's': seconds = atof(optarg); break;
	case 'c': count_limit = strtoull(optarg, NULL, 10); break;
	case 't': talk = atof(optarg); break;
	case 'g': giveup = atof(optarg); break;
	case 'n': n_socks = atoi(optarg); break;
	case 'p': port_base = atoi(optarg); break;
	case 'T': use_tcp = 1; break;
	case 'L': use_tcp = use_tls = 1; break;
	case 'e': expires_s = atoi(optarg); break;
	case 'N': no_prime = 1; break;
	case 'S': sync_io = 1; break;
	default: usage();
	}
	if (!domain) domain = host;
	if (!users || n_socks < 1 || window < 1) usage();
	if ((uint32_t)window > users) window = users;

	md5_setup();
	char probe[33];
	md5_hex("abc", 3, probe);
	if (strcmp(probe, "900150983cd24fb0d6963f7d28e17f72")) die("MD5 is broken");

	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	run_id = (uint32_t)(ts.tv_nsec ^ ts.tv_sec ^ ((uint32_t)getpid() << 16));
	user_tab = calloc(users, sizeof *user_tab);

	epfd = epoll_create1(0);
	int two_sided = mode == CALL || mode == MESSAGE;
	n_uac = n_socks;
	n_ends = two_sided ? 2 * n_socks : n_socks;
	ends = calloc(n_ends, sizeof *ends);
	for (int i = 0; i < n_ends; i++) open_end(&ends[i], i >= n_uac, port_base ? port_base + i : 0);

	/* in the open loop as many slots as can be outstanding before giving up */
	n_slots = window;
	if (rate > 0) n_slots = rate * (talk + 1) < 512 ? 512 : rate * (talk + 1) > 60000 ? 60000 : rate * (talk + 1);
	if (!two_sided && (uint32_t)n_slots > users) n_slots = users;
	ops = calloc(n_slots, sizeof *ops);
	free_ops = calloc(n_slots, sizeof *free_ops);
	for (n_free = 0; n_free < n_slots; n_free++) free_ops[n_free] = n_slots - 1 - n_free;

	if (!no_prime && (two_sided || mode == REFRESH || mode == UNREGISTER)) {
		priming = 1;
		op_mode = REGISTER;
		drive(0, n_slots < 64 ? n_slots : 64, users, INFINITY);
		if (failed || ok < users) die("priming: %lu of %u users registered, %lu failed", ok, users, failed);
		priming = 0;
		started = ok = failed = resent_ops = resends = uas_resends = next_user = 0;
	}
	op_mode = mode;
	meet("PRIMED");
	struct rusage a, b;
	getrusage(RUSAGE_SELF, &a);
	double w0 = now();
	double busy = drive(rate, window, count_limit, seconds);
	double wall = now() - w0;
	getrusage(RUSAGE_SELF, &b);
	meet("DONE");

	double cpu = (b.ru_utime.tv_sec - a.ru_utime.tv_sec) + (b.ru_stime.tv_sec - a.ru_stime.tv_sec) +
		((b.ru_utime.tv_usec - a.ru_utime.tv_usec) + (b.ru_stime.tv_usec - a.ru_stime.tv_usec)) * 1e-6;
	double span = rate > 0 && !count_limit ? seconds : busy;
	qsort(lat, n_lat, sizeof *lat, by_value);
	qsort(lat_setup, n_setup, sizeof *lat_setup, by_value);
	printf("{\"mode\":\"%s\",\"transport\":\"%s\",\"started\":%lu,\"ok\":%lu,\"failed\":%lu,\"overrun\":%lu,"
		"\"ops_resent\":%lu,\"resends\":%lu,\"uas_resends\":%lu,\"rechallenged\":%lu,\"stray\":%lu,\"send_errors\":%lu,"
		"\"seconds\":%.3f,\"wall\":%.3f,\"per_second\":%.1f,\"ms_p50\":%.3f,\"ms_p99\":%.3f,",
		mode_name[mode], tp(), started, ok, failed, overrun, resent_ops, resends, uas_resends, rechallenged,
		stray, send_errors, span, wall, ok / (span > 0 ? span : 1), pct(lat, n_lat, .5), pct(lat, n_lat, .99));
	if (n_setup) printf("\"setup_ms_p50\":%.3f,\"setup_ms_p99\":%.3f,", pct(lat_setup, n_setup, .5), pct(lat_setup, n_setup, .99));
	printf("\"gen_cpu_us_per_op\":%.1f,\"gen_cpu_share\":%.2f,\"codes\":{", ok ? cpu * 1e6 / ok : 0, cpu / (wall > 0 ? wall : 1));
	for (int i = 0, first = 1; i < 700; i++)
		if (codes[i]) { printf("%s\"%d\":%lu", first ? "" : ",", i, codes[i]); first = 0; }
	printf("}}\n");
	return failed ? 3 : 0;
}
