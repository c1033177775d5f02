/*
 * Load for datapath measurements: one TCP flow at a time, so that the path is measured and not the
 * tool.
 *
 *   netbench server ADDRESS PORT
 *   netbench stream|rr|crr ADDRESS PORT SECONDS
 *
 * stream: bytes as fast as they go. rr: one byte there and back on one connection. crr: connect,
 * one byte there and back, close. A client prints what it did per second: bytes, round trips,
 * connections. The first byte of a connection tells the server what is wanted of it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SINK 's'
#define ECHO 'e'
#define ONCE 'o'

static char buffer[256 * 1024];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in where = {.sin_family = AF_INET,
				    .sin_port = htons((unsigned short)atoi(port))};

	if (inet_pton(AF_INET, host, &where.sin_addr) != 1) {
		fprintf(stderr, "%s is no IPv4 address\n", host);
		exit(2);
	}
	return where;
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void serve(int fd)
{
	char mode;
	ssize_t got;

	no_delay(fd);
	if (read(fd, &mode, 1) != 1)
		return;
	if (mode != SINK && write(fd, &mode, 1) != 1)
		return;
	/* The side that closes first keeps the connection in TIME_WAIT: that must not eat up the
	 * client's ports. */
	if (mode == ONCE)
		return;
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		if (mode == ECHO && write(fd, buffer, (size_t)got) != got)
			return;
}

static void server(struct sockaddr_in where)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	signal(SIGCHLD, SIG_IGN);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&where, sizeof(where)) || listen(fd, 1024))
		die("bind");
	printf("ready\n");
	fflush(stdout);
	/*
	 * Short connections are served in place: a fork each would be the larger part of what is
	 * measured. A stream keeps the server to itself until it ends, and so does a run of round
	 * trips.
	 */
	for (;;) {
		int client = accept(fd, NULL, NULL);

		if (client < 0) {
			if (errno == EINTR)
				continue;
			die("accept");
		}
		serve(client);
		close(client);
	}
}

static int dial(struct sockaddr_in where, char mode)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&where, sizeof(where)))
		die("connect");
	no_delay(fd);
	if (write(fd, &mode, 1) != 1)
		die("write");
	if (mode != SINK && read(fd, &mode, 1) != 1)
		die("read");
	return fd;
}

static double stream(struct sockaddr_in where, double end)
{
	double bytes = 0;
	int fd = dial(where, SINK);

	while (now() < end) {
		ssize_t sent = write(fd, buffer, sizeof(buffer));

		if (sent < 0)
			die("write");
		bytes += (double)sent;
	}
	close(fd);
	return bytes;
}

static double round_trips(struct sockaddr_in where, double end)
{
	double count = 0;
	char byte = 0;
	int fd = dial(where, ECHO);

	while (now() < end) {
		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			die("round trip");
		count++;
	}
	close(fd);
	return count;
}

static double connections(struct sockaddr_in where, double end)
{
	double count = 0;
	char rest;

	while (now() < end) {
		int fd = dial(where, ONCE);

		if (read(fd, &rest, 1) != 0)
			die("end of connection");
		close(fd);
		count++;
	}
	return count;
}

int main(int argc, char **argv)
{
	double (*run)(struct sockaddr_in, double);
	double begin, done;

	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "server"))
		server(address(argv[2], argv[3]));
	if (argc != 5) {
		fprintf(
		    stderr,
		    "usage: netbench server ADDRESS PORT | stream|rr|crr ADDRESS PORT SECONDS\n");
		return 2;
	}
	if (!strcmp(argv[1], "stream"))
		run = stream;
	else if (!strcmp(argv[1], "rr"))
		run = round_trips;
	else
		run = connections;
	begin = now();
	done = run(address(argv[2], argv[3]), begin + atof(argv[4]));
	printf("%.1f\n", done / (now() - begin));
	return 0;
}
