/* A USB camera that is not there: put before libc, it answers what V4L2's driver would for
   /dev/video0. Pictures are YUYV, grey, brighter by 10 each; FAKE_V4L2 names a file that says what
   it does: "on", "silent" (no picture comes) or "gone" (unplugged). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 4, NONE = -1 };
static int camera = NONE, flags_of_open, width = 640, height = 480, number, next_buffer;
static int queued[COUNT];
static double due_s, fps = 30;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static int told(const char *what) {
    char text[16] = "";
    FILE *file = fopen(getenv("FAKE_V4L2"), "r");
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    return !strncmp(text, what, strlen(what));
}

static unsigned bytes(void) { return 2u * width * height; }

static int opened(const char *path, int flags) {
    if (strcmp(path, "/dev/video0")) return NONE;
    if (told("gone")) { errno = ENOENT; return -2; }
    flags_of_open = flags;
    number = next_buffer = 0;
    return camera = memfd_create("camera", MFD_CLOEXEC);
}

#define OPEN(NAME)                                                              \
    int NAME(const char *path, int flags, ...) {                                \
        va_list list;                                                           \
        va_start(list, flags);                                                  \
        int mode = va_arg(list, int), made = opened(path, flags);               \
        va_end(list);                                                           \
        if (made != NONE) return made == -2 ? -1 : made;                        \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #NAME);          \
        return real(path, flags, mode);                                         \
    }
OPEN(open)
OPEN(open64)

static int fail(int number_of_error) { errno = number_of_error; return -1; }

static int shape(struct v4l2_format *format, int set) {
    if (set) {
        if (format->fmt.pix.pixelformat != V4L2_PIX_FMT_YUYV) return fail(EINVAL);
        width = format->fmt.pix.width;
        height = format->fmt.pix.height;
    }
    format->fmt.pix.width = width;
    format->fmt.pix.height = height;
    format->fmt.pix.pixelformat = V4L2_PIX_FMT_YUYV;
    format->fmt.pix.field = V4L2_FIELD_NONE;
    format->fmt.pix.bytesperline = 2 * width;
    format->fmt.pix.sizeimage = bytes();
    return 0;
}

static int taken(struct v4l2_buffer *buffer) {
    while (told("silent") || now_s() < due_s) {
        if (flags_of_open & O_NONBLOCK) return fail(EAGAIN);
        usleep(1000);
    }
    if (told("gone")) return fail(ENODEV);
    if (!queued[next_buffer]) return fail(EAGAIN);
    due_s = now_s() + 1 / fps;
    unsigned char *pixels =
        mmap(0, bytes(), PROT_WRITE, MAP_SHARED, camera, (off_t)next_buffer << 24);
    for (unsigned at = 0; at < bytes(); at += 2) {
        pixels[at] = 16 + 10 * (number % 20);
        pixels[at + 1] = 128;
    }
    munmap(pixels, bytes());
    number++;
    queued[next_buffer] = 0;
    buffer->index = next_buffer;
    buffer->bytesused = bytes();
    buffer->timestamp.tv_sec = (long)now_s();
    next_buffer = (next_buffer + 1) % COUNT;
    return 0;
}

static int answered(unsigned long request, void *given) {
    struct v4l2_capability *able = given;
    struct v4l2_requestbuffers *wanted = given;
    struct v4l2_buffer *buffer = given;
    struct v4l2_streamparm *rate = given;
    switch (request) {
    case VIDIOC_QUERYCAP:
        memset(able, 0, sizeof *able);
        able->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    case VIDIOC_G_INPUT: *(int *)given = 0; return 0;
    case VIDIOC_S_INPUT: return 0;
    case VIDIOC_ENUMINPUT: memset((char *)given + 4, 0, sizeof(struct v4l2_input) - 4); return 0;
    case VIDIOC_G_FMT: return shape(given, 0);
    case VIDIOC_S_FMT: return shape(given, 1);
    case VIDIOC_S_PARM:
        fps = (double)rate->parm.capture.timeperframe.denominator /
              rate->parm.capture.timeperframe.numerator; /* fall through */
    case VIDIOC_G_PARM:
        rate->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        rate->parm.capture.timeperframe.numerator = 1;
        rate->parm.capture.timeperframe.denominator = (unsigned)fps;
        return 0;
    case VIDIOC_REQBUFS:
        wanted->count = COUNT;
        return ftruncate(camera, (off_t)COUNT << 24);
    case VIDIOC_QUERYBUF:
        buffer->length = bytes();
        buffer->m.offset = buffer->index << 24;
        return 0;
    case VIDIOC_QBUF: queued[buffer->index] = 1; return 0;
    case VIDIOC_DQBUF: return taken(buffer);
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF: return 0;
    default: return fail(ENOTTY);
    }
}

int ioctl(int descriptor, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    void *given = va_arg(list, void *);
    va_end(list);
    if (descriptor == camera && camera != NONE) return answered(request & 0xffffffff, given);
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    return real(descriptor, request, given);
}
