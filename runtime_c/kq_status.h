/* Status codes of generated networks (SPEC 7.1). */
#ifndef KQ_STATUS_H
#define KQ_STATUS_H

typedef enum {
    KQ_OK = 0,        /* the outputs are written */
    KQ_ERR_NULL = -1, /* a pointer is NULL; no buffer has been touched */
    KQ_ERR_ALIGN = -2 /* the arena is not aligned; no buffer has been touched */
} kq_status;

#endif
