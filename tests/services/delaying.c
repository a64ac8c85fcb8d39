/* A TCP proxy on loopback that behaves like a link: it delays, limits the rate, and counts HTTP requests.

   delaying COUNTS TARGET_PORT ONE_WAY_S CONNECTION_RATE TOTAL_RATE     rates in bytes per second, 0: no limit

   Every byte arrives ONE_WAY_S after it was sent, or later: as soon as the rate of its connection, and that of all
   connections together in its direction, allow. A new connection waits one round trip longer, for its handshake.
   CHAIN counts the requests of the longest chain in which each was sent after the one before it was answered.
   Prints the port on which it listens. One thread, so that it takes little from a machine that is measured. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { GET, HEAD, PUT, POST, DELETE, OTHER, CONNECTIONS, MOST_CONNECTIONS, DOWN_BYTES, UP_BYTES, CHAIN, COUNTERS };
enum { UP, DOWN };                     /* client to server, server to client */
enum { CHUNK = 32768, QUEUED = 256, PAIRS = 512, HEADER = 16384 };
static const double SLACK = 0.005;     /* a late wake-up may be made up for, but not more */

struct chunk { double due; int size, sent, paid; char data[CHUNK]; };
struct flow {                          /* one direction of a connection */
  int from, to, ended, shut, blocked;
  double free_at;                      /* when its rate allows the next chunk */
  double paid_at;                      /* when its last chunk was sent */
  int head, held;
  struct chunk *queue[QUEUED];
};
struct pair {
  int used;
  struct flow flow[2];
  long body;                           /* bytes of a request's body that follow; -1: unknown */
  int header;                          /* bytes of a request's header so far */
  double asked;                        /* when the request came that is not answered yet; 0: none */
  char text[HEADER];
};

static struct pair pairs[PAIRS];
static struct chunk *spare[4096];
static int spares;
static volatile uint64_t *counts;
static double one_way, connection_rate, total_rate, total_free_at[2];
static double chain_end;               /* when the last request of the chain was answered */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static int verb(const char *text, int size) {
  static const char *names[] = {"GET ", "HEAD ", "PUT ", "POST ", "DELETE "};
  for (int i = 0; i < 5; i++)
    if (size >= (int)strlen(names[i]) && !memcmp(text, names[i], strlen(names[i]))) return i;
  return OTHER;
}

/* Count the requests in bytes that a client sent; bodies are skipped by their Content-Length. */
static void count_requests(struct pair *p, const char *data, int size) {
  if (p->body < 0) {                   /* a body of unknown length has ended if a request begins here */
    if (verb(data, size) == OTHER) return;
    p->body = 0;
  }
  while (size > 0) {
    if (p->body > 0) {
      int skip = p->body < size ? (int)p->body : size;
      p->body -= skip, data += skip, size -= skip;
      continue;
    }
    p->text[p->header++] = *data++, size--;
    if (p->header == HEADER) { p->header = 0; p->body = -1; return; }
    if (p->header < 4 || memcmp(p->text + p->header - 4, "\r\n\r\n", 4)) continue;
    p->text[p->header - 2] = 0;
    counts[verb(p->text, p->header)]++;
    p->asked = now();
    char *length = strcasestr(p->text, "\r\ncontent-length:");
    p->body = length ? atol(length + 17) : strcasestr(p->text, "\r\ntransfer-encoding:") ? -1 : 0;
    p->header = 0;
    if (p->body < 0) return;
  }
}

static void drop(struct pair *p) {
  for (int d = 0; d < 2; d++)
    for (struct flow *f = &p->flow[d]; f->held; f->held--, f->head = (f->head + 1) % QUEUED)
      if (spares < 4096) spare[spares++] = f->queue[f->head]; else free(f->queue[f->head]);
  close(p->flow[UP].from), close(p->flow[UP].to);
  p->used = 0;
  counts[CONNECTIONS]--;
}

static void take(struct pair *p, int direction) {
  struct flow *f = &p->flow[direction];
  while (f->held < QUEUED && !f->ended) {
    struct chunk *c = spares ? spare[--spares] : malloc(sizeof *c);
    int n = (int)recv(f->from, c->data, CHUNK, MSG_DONTWAIT);
    if (n <= 0) {
      spare[spares++] = c;
      if (n == 0 || (errno != EAGAIN && errno != EINTR)) f->ended = 1;
      return;
    }
    c->due = now() + one_way, c->size = n, c->sent = c->paid = 0;
    f->queue[(f->head + f->held++) % QUEUED] = c;
    counts[direction == UP ? UP_BYTES : DOWN_BYTES] += (uint64_t)n;
    if (direction == UP) count_requests(p, c->data, n);
  }
}

/* Return when the first chunk of a flow may be sent. */
static double ready(const struct flow *f, int direction) {
  const struct chunk *c = f->queue[f->head];
  double at = c->due;
  if (c->paid) return at;              /* the receiver was slow, not the link */
  if (connection_rate > 0 && f->free_at > at) at = f->free_at;
  if (total_rate > 0 && total_free_at[direction] > at) at = total_free_at[direction];
  return at;
}

static double later(double free_at, double seconds, double t) {
  return (free_at < t - SLACK ? t - SLACK : free_at) + seconds;
}

static int give(struct pair *p, int direction) {
  struct flow *f = &p->flow[direction];
  struct chunk *c = f->queue[f->head];
  if (direction == DOWN && p->asked > 0) {
    if (p->asked >= chain_end) counts[CHAIN]++, chain_end = now();
    p->asked = 0;
  }
  if (!c->paid) {
    double t = now();
    c->paid = 1, f->paid_at = t;
    if (connection_rate > 0) f->free_at = later(f->free_at, c->size / connection_rate, t);
    if (total_rate > 0) total_free_at[direction] = later(total_free_at[direction], c->size / total_rate, t);
  }
  int n = (int)send(f->to, c->data + c->sent, (size_t)(c->size - c->sent), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) {
    if (errno != EAGAIN && errno != EINTR) return -1;
    n = 0;
  }
  c->sent += n;
  f->blocked = c->sent < c->size;
  if (!f->blocked) {
    if (spares < 4096) spare[spares++] = c; else free(c);
    f->head = (f->head + 1) % QUEUED, f->held--;
  }
  return 0;
}

static void admit(int listener, int target) {
  int client = accept4(listener, 0, 0, SOCK_NONBLOCK), one = 1;
  if (client < 0) return;
  struct pair *p = pairs;
  while (p < pairs + PAIRS && p->used) p++;
  int server = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)target)};
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  if (p == pairs + PAIRS || connect(server, (struct sockaddr *)&to, sizeof to)) { close(client), close(server); return; }
  setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  memset(p, 0, sizeof *p);
  p->used = 1;
  p->flow[UP].from = p->flow[DOWN].to = client;
  p->flow[UP].to = p->flow[DOWN].from = server;
  p->flow[UP].free_at = now() + 3 * one_way;      /* the handshake's round trip, before the first request */
  if (++counts[CONNECTIONS] > counts[MOST_CONNECTIONS]) counts[MOST_CONNECTIONS] = counts[CONNECTIONS];
}

int main(int n, char **argv) {
  if (n != 6) return 2;
  signal(SIGPIPE, SIG_IGN);
  int file = open(argv[1], O_RDWR | O_CREAT, 0600), target = atoi(argv[2]);
  if (file < 0 || ftruncate(file, COUNTERS * 8)) return 1;
  counts = mmap(0, COUNTERS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  one_way = atof(argv[3]), connection_rate = atof(argv[4]), total_rate = atof(argv[5]);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in own = {.sin_family = AF_INET};
  socklen_t size = sizeof own;
  inet_pton(AF_INET, "127.0.0.1", &own.sin_addr);
  if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, PAIRS)) return 1;
  getsockname(listener, (struct sockaddr *)&own, &size);
  printf("%d\n", ntohs(own.sin_port)), fflush(stdout);
  static struct pollfd polled[1 + 4 * PAIRS];
  static struct { struct pair *pair; int direction, sends; } meant[1 + 4 * PAIRS];
  for (;;) {
    double t = now(), wake = t + 3600;
    for (;;) {                         /* send what may be sent; of flows that wait for the link, each in its turn */
      struct pair *found = 0;
      int direction = 0;
      double least = 1e300, last = 0;
      for (struct pair *p = pairs; p < pairs + PAIRS; p++)
        for (int d = 0; p->used && d < 2; d++) {
          struct flow *f = &p->flow[d];
          if (!f->held || f->blocked) continue;
          double at = ready(f, d);
          if (at < least || (at == least && f->paid_at < last)) least = at, last = f->paid_at, found = p, direction = d;
        }
      if (!found || least > t) { wake = found ? least : wake; break; }
      if (give(found, direction)) drop(found);
    }
    int many = 1;
    polled[0] = (struct pollfd){listener, POLLIN, 0};
    for (struct pair *p = pairs; p < pairs + PAIRS; p++) {
      if (!p->used) continue;
      int over = 0;
      for (int d = 0; d < 2; d++) {
        struct flow *f = &p->flow[d];
        if (f->ended && !f->held && !f->shut) shutdown(f->to, SHUT_WR), f->shut = 1;
        over += f->shut;
      }
      if (over == 2) { drop(p); continue; }
      for (int d = 0; d < 2; d++) {
        struct flow *f = &p->flow[d];
        for (int sends = 0; sends < 2; sends++) {
          if (sends ? !f->blocked : f->ended || f->held == QUEUED) continue;
          meant[many].pair = p, meant[many].direction = d, meant[many].sends = sends;
          polled[many++] = (struct pollfd){sends ? f->to : f->from, sends ? POLLOUT : POLLIN, 0};
        }
      }
    }
    double left = wake - now();
    if (left < 0) left = 0;
    struct timespec wait = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
    ppoll(polled, (nfds_t)many, &wait, 0);
    if (polled[0].revents) admit(listener, target);
    for (int i = 1; i < many; i++) {
      if (!polled[i].revents) continue;
      if (meant[i].sends) meant[i].pair->flow[meant[i].direction].blocked = 0;
      else take(meant[i].pair, meant[i].direction);
    }
  }
}
